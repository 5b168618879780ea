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

    def acquire(pointer, target, limit_ns, error_pointer, SOURCES, THREADS):
        """Read SOURCES int32 until all reach `target`, an error word is set or the time is over.

        Returns how far the last one is ahead of the target, negative if it is late, and its number.
        """
        start = int(pointer.handle.data.item())
        cells = [ctypes.c_int32.from_address(start + 4 * source) for source in range(SOURCES)]
        failed = ctypes.c_int32.from_address(int(error_pointer.handle.data.item()))
        wanted = int(target.handle.data.item())
        end = time.monotonic_ns() + int(limit_ns.handle.data.item())
        for source, cell in enumerate(cells):
            while (ahead := (cell.value - wanted + 2**31) % 2**32 - 2**31) < 0:
                if failed.value or time.monotonic_ns() >= end:
                    return target * 0 + ahead, target * 0 + source
                time.sleep(1e-4)
        return target * 0, target * 0

else:

    @triton.jit
    def acquire(pointer, target, limit_ns, error_pointer, SOURCES: tl.constexpr, THREADS: tl.constexpr):
        """Read SOURCES int32 until all reach `target`, an error word is set or the time is over.

        Returns how far the last one is ahead of the target, negative if it is late, and its number. Each of the THREADS
        threads polls one source; the barrier orders the reads after it behind all of them, and the minimum is the same
        in all threads. Time is counted in cycles, two for a nanosecond: no GPU's clock is faster.
        """
        source = tl.arange(0, THREADS) % SOURCES
        lanes = (source * 0).to(tl.int64)
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
                pointer.to(tl.int64) + 4 * source.to(tl.int64),
                target + lanes.to(tl.int32),
                limit_ns.to(tl.int64) * 2 + lanes,
                error_pointer.to(tl.int64) + lanes,
            ],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )
        ahead = tl.min(values - target, axis=0)
        late = tl.max(tl.where(values - target < 0, source, 0), axis=0)
        tl.debug_barrier()
        return ahead, late


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
    ahead, _ = acquire(int_pointer(own + flags + 4 * index), target, timeout_ns, error_pointer, 1, THREADS)
    if ahead < 0:
        report(tab, me, errors, TIMEOUT, family, peer, P)
    return ahead >= 0


@triton.jit
def wait_for_all(tab, own, me, counters, target, timeout_ns, errors, family, P: tl.constexpr, THREADS: tl.constexpr):
    """Wait for the counters of all ranks in this rank's region, at once; False as in `wait`."""
    error_pointer = int_pointer(own + errors + 4 * me)
    ahead, late = acquire(int_pointer(own + counters), target, timeout_ns, error_pointer, P, THREADS)
    if ahead < 0:
        report(tab, me, errors, TIMEOUT, family, late, P)
    return ahead >= 0


@triton.jit
def publish(base, flags, index, value):
    """Raise a flag in the region at `base`, after a barrier that follows the writes of all threads."""
    tl.atomic_xchg(int_pointer(base + flags + 4 * index), value, sem="release", scope="sys")


@triton.jit
def tick(epoch_ptr, arrived_ptr, epoch):
    """The last program of a grid increments the epoch; all have read it, because they used its value before."""
    tl.debug_barrier()
    arrived = tl.atomic_add(arrived_ptr, 1, sem="relaxed", scope="gpu")
    if arrived == tl.num_programs(0) - 1:
        tl.store(arrived_ptr, 0)
        tl.store(epoch_ptr, epoch + 1)
