"""Cases of test_live_migration over peer memory: in pieces beside the traffic, and injected faults."""

import pytest
import torch
import torch.distributed as dist

from eplb.core.migration import Migration
from eplb.core.topology import Topology
from eplb.errors import InputError
from eplb.runtime.live_migration import LiveMigration, MigrationPoint, PushingExperts, Transport
from eplb.runtime.weights.quantization import Fp8Blocks
from tests.runtime.migration_cases import Fault, World, _device, _fails, _refused, pair, placement, run_cases


def case_pushed_in_pieces_between_forward_passes(size):
    for codec in (None, Fp8Blocks()):
        before, after = pair(size)
        world = World(before, codec)
        plan = Migration.between(before, after)
        live = LiveMigration(plan, world.weights, world.tables, world.ranks, transport=Transport.PEER_MEMORY)
        expert_bytes = sum(part.numel() * part.element_size() for part in world.weights.slot_parts(0, 0).values())
        for layer in live.layers:
            live.begin(layer)
            left, passes = live.push(1), 0
            assert left > expert_bytes
            while left:
                passes += 1
                world.check([after] * layer + [before] * (3 - layer))
                assert live.push(expert_bytes // 3 + 1) < left
                left = _most(live.push(1))
            assert passes > 3
            live.stage(layer)
            live.commit(layer)
        world.check([after] * 3)


def _most(number):
    """The largest of all processes, which must serve equally often."""
    found = torch.tensor([number], device=_device())
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(found)


def case_each_call_of_the_experts_pushes_a_piece(size):
    before, after = pair(size)
    world = World(before)
    plan = Migration.between(before, after)
    live = LiveMigration(plan, world.weights, world.tables, world.ranks, transport=Transport.PEER_MEMORY)
    experts = PushingExperts(world.weights, live, piece_bytes=100)
    rows, counts = torch.ones((4, 32), device=_device()), torch.tensor([1, 2, 0, 1], device=_device())
    live.begin(0)
    left = live.push(1)
    assert torch.equal(experts.forward(0, rows, counts), world.weights.forward(0, rows, counts))
    assert live.push(1) == left - 100 - 1
    live.stage(0)
    live.commit(0)
    world.check([after, before, before])


def case_pushed_layers_are_moved_as_sent_ones(size):
    for seed in range(4):
        topology = Topology(1, size, 4)
        before, after = (placement(seed + first, topology, 3 * size, num_empty=seed % 3) for first in (0, 100))
        world = World(before)
        plan = Migration.between(before, after)
        live = LiveMigration(plan, world.weights, world.tables, world.ranks, transport=Transport.PEER_MEMORY)
        if seed == 0:
            live.begin(2)
            live.push(7)  # abandoned
        for layer in live.layers:
            live.stage(layer)
            live.commit(layer)
        world.check([after] * 3)


def case_fault_corrupted_push(size):
    fault = Fault(MigrationPoint.EXCHANGED, 1, corrupt=True)
    _fails(size, fault, "checking layer 0: failed on rank 1", transport=Transport.PEER_MEMORY)


def case_fault_lost_push(size):
    """Rank 0 sends nothing of layer 1: the staging still holds layer 0, and the erased headers differ from it."""
    before, after = pair(size)
    world = World(before)
    plan = Migration.between(before, after)
    live = LiveMigration(plan, world.weights, world.tables, world.ranks, transport=Transport.PEER_MEMORY)
    live.stage(0)
    live.commit(0)
    live.begin(1)
    if dist.get_rank() == 0:
        live._peers._waiting.clear()
    _refused(lambda: live.stage(1), "checking layer 1: failed on rank")
    world.check([after, before, before])


def case_pushing_needs_peer_memory(size):
    before, after = pair(size)
    world = World(before)
    live = LiveMigration(Migration.between(before, after), world.weights, world.tables, world.ranks)
    for call in (lambda: live.begin(0), lambda: live.push(1)):
        with pytest.raises(InputError, match="expected peer_memory"):
            call()


CASES = sorted(name for name in globals() if name.startswith("case_"))


def run_all(_member, _nothing):
    """Run every case in this process: name -> what went wrong, or nothing."""
    return run_cases({name: globals()[name] for name in CASES})
