"""Flags between ranks: release after writing, bounded acquire before reading, error words, epochs.

A flag is an int32 in the region of the reader. It only grows: the writer stores its epoch + 1 after its data. Values
are compared by their difference, so an epoch may wrap. On the GPU all threads of a program poll with acquire loads at
system scope; in Triton's interpreter, which has no inline PTX, `acquire` is a plain loop of the host.
"""

import ctypes
import time

import triton
import triton.language as tl

INTERPRETED = triton.knobs.runtime.interpret

TIMEOUT = tl.constexpr(1)
ROWS_OVERFLOW = tl.constexpr(2)
TOKENS_OVERFLOW = tl.constexpr(3)
BAD_SLOT = tl.constexpr(4)
CHOICES = tl.constexpr(0)
DISPATCH = tl.constexpr(1)
COMBINE = tl.constexpr(2)


@triton.jit
def address_of(tab, rank, offset):
    """Address of byte `offset` of the region of a rank."""
    return tl.load(tab + rank) + offset


@triton.jit
def int_pointer(address):
    """The address as a pointer to int32."""
    return address.to(tl.pointer_type(tl.int32))


if INTERPRETED:

    def acquire(pointer, target, limit_ns, error_pointer, THREADS):
        """Read an int32 until it reaches `target`, an error word is set or the time is over; the last value."""
        cell = ctypes.c_int32.from_address(int(pointer.handle.data.item()))
        failed = ctypes.c_int32.from_address(int(error_pointer.handle.data.item()))
        wanted = int(target.handle.data.item())
        end = time.monotonic_ns() + int(limit_ns.handle.data.item())
        while (cell.value - wanted + 2**31) % 2**32 < 2**31 and not failed.value and time.monotonic_ns() < end:
            time.sleep(0)
        return target - (wanted - cell.value)

else:

    @triton.jit
    def acquire(pointer, target, limit_ns, error_pointer, THREADS: tl.constexpr):
        """Read an int32 until it reaches `target`, an error word is set or the time is over; the least value read.

        Each of the THREADS threads polls once, so the reads after it are ordered in every thread, and the minimum is
        the same in all of them. Time is counted in cycles, two for a nanosecond: no GPU's clock is faster.
        """
        lanes = tl.zeros([THREADS], dtype=tl.int64)
        values = tl.inline_asm_elementwise(
            """
            {
            .reg .pred reached, over;
            .reg .u64 start, now;
            .reg .s32 ahead, failed;
            ld.acquire.sys.global.u32 $0, [$1];
            sub.s32 ahead, $0, $2;
            setp.ge.s32 reached, ahead, 0;
            @reached bra DONE;
            mov.u64 start, %clock64;
            POLL:
            ld.acquire.sys.global.u32 $0, [$1];
            sub.s32 ahead, $0, $2;
            setp.ge.s32 reached, ahead, 0;
            @reached bra DONE;
            ld.relaxed.sys.global.s32 failed, [$4];
            setp.ne.s32 over, failed, 0;
            @over bra DONE;
            mov.u64 now, %clock64;
            sub.u64 now, now, start;
            setp.lt.u64 over, now, $3;
            @over bra POLL;
            DONE:
            }
            """,
            "=&r,l,r,l,l",
            [
                pointer.to(tl.int64) + lanes,
                target + lanes.to(tl.int32),
                limit_ns.to(tl.int64) * 2 + lanes,
                error_pointer.to(tl.int64) + lanes,
            ],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )
        ahead = tl.min(values - target)
        tl.debug_barrier()
        return target + ahead


@triton.jit
def report(tab, me, errors, kind, family, rank, P: tl.constexpr):
    """Write an error word into this rank's entry on every rank; the first word stays."""
    word = me * 0 + rank * 65536 + family * 256 + kind
    for peer in tl.static_range(P):
        tl.atomic_cas(int_pointer(address_of(tab, peer, errors + 4 * me)), word * 0, word, sem="relaxed", scope="sys")


@triton.jit
def wait(tab, own, me, flags, index, target, timeout_ns, errors, family, peer, P: tl.constexpr, THREADS: tl.constexpr):
    """Wait for a flag of this rank's region, at address `own`; False if it was late or this rank has failed before."""
    error_pointer = int_pointer(own + errors + 4 * me)
    value = acquire(int_pointer(own + flags + 4 * index), target, timeout_ns, error_pointer, THREADS)
    arrived = value - target >= 0
    if not arrived:
        report(tab, me, errors, TIMEOUT, family, peer, P)
    return arrived


@triton.jit
def publish(tab, peer, flags, index, value):
    """Raise a flag on a rank, after a barrier that follows the writes of all threads."""
    pointer = int_pointer(address_of(tab, peer, flags + 4 * index))
    tl.atomic_xchg(pointer, value, sem="release", scope="sys")


@triton.jit
def tick(epoch_ptr, arrived_ptr, epoch):
    """The last program of a grid increments the epoch; none may read it afterwards."""
    tl.debug_barrier()
    arrived = tl.atomic_add(arrived_ptr, 1, sem="acq_rel", scope="gpu")
    if arrived == tl.num_programs(0) - 1:
        tl.store(arrived_ptr, 0)
        tl.store(epoch_ptr, epoch + 1)
