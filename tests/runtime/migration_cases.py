"""Cases of test_live_migration, executed on each process: migrations under traffic, and injected faults.

Weights are integers with gates in multiples of 128, where SwiGLU is exact: outputs are equal bit for bit or wrong.
"""

import re
import traceback
from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.distributed as dist

from eplb.core.migration import Migration
from eplb.core.placement import Placement
from eplb.core.topology import Topology
from eplb.runtime.exchange.rank_group import RankGroup
from eplb.runtime.layer.placement_tables import PlacementTables
from eplb.runtime.live_migration import LiveMigration, MigrationError, MigrationPoint, Transport, migrate
from eplb.runtime.staged_experts import BATCHES_PER_EXCHANGE
from eplb.runtime.weights.expert_weights import ExpertWeights, ExpertWeightsShape, GateUpLayout
from eplb.runtime.weights.quantization import Fp4Blocks, Fp8Blocks

HIDDEN, INNER, TOP_K, NUM_TOKENS = 32, 32, 2, 24


def _device():
    return torch.device("cuda", dist.get_rank()) if dist.get_backend() == "nccl" else torch.device("cpu")


class World:
    """One placement, running on all processes."""

    def __init__(self, before, codec=None, group=None, max_replicas=None, layout=GateUpLayout.SPLIT):
        self.before, self.ranks = before, RankGroup.of(before.topology, group or dist.group.WORLD)
        self.tables = PlacementTables(before, device=_device(), max_replicas=max_replicas)
        self.weights = self._new_weights(len(self.ranks.slots), codec, layout)
        self.truth = self._new_weights(before.num_experts, codec, layout)
        for layer in range(before.num_layers):
            row = before.physical_to_logical_map[layer]
            for expert in range(before.num_experts):
                self.truth.write_dense(layer, expert, *_expert(layer, expert))
            for slot in self.ranks.slots:
                if row[slot] >= 0:
                    expert_parts = self.truth.slot_parts(layer, int(row[slot]))
                    self.weights.write_parts(layer, slot - self.ranks.slots.start, expert_parts)
        layers, experts = range(before.num_layers), range(before.num_experts)
        self.prints = [[self.truth.fingerprint(layer, expert) for expert in experts] for layer in layers]
        self.wanted = [self.expected(layer) for layer in layers]
        self.addresses = self._addresses()

    def _new_weights(self, num_slots, codec, layout):
        shape = ExpertWeightsShape(
            num_layers=self.before.num_layers, num_slots=num_slots, hidden_size=HIDDEN, intermediate_size=INNER
        )
        return ExpertWeights(shape, codec, compute_dtype=torch.float32, device=_device(), layout=layout)

    def _addresses(self):
        tables = [self.tables.phy2log_LP.data_ptr(), self.tables.log2phy_LEX.data_ptr()]
        weights = [self.weights.layer_parts(layer).values() for layer in range(self.before.num_layers)]
        return tables + [part.data_ptr() for parts in weights for part in parts]

    def outputs(self, layer):
        """The output of the layer over all processes, with the published maps and the live weights."""
        x, experts = _tokens(layer, self.before.num_experts)
        log2phy, count = self.tables.log2phy_LEX[layer], self.tables.logcnt_LE[layer]
        slot = log2phy[experts, torch.arange(NUM_TOKENS, device=x.device)[:, None] % count[experts]]
        y = _run(self.weights, layer, x, slot - self.ranks.slots.start)
        dist.all_reduce(y, group=self.ranks.process_group)
        return y

    def expected(self, layer):
        """The same from the truth, on one process."""
        x, experts = _tokens(layer, self.before.num_experts)
        return _run(self.truth, layer, x, experts)

    def serves(self):
        """Whether every layer serves exactly."""
        return all(torch.equal(self.outputs(layer), self.wanted[layer]) for layer in range(self.before.num_layers))

    def holds(self, layer, placement):
        """Whether this process has the layer's maps and weights of a placement, at unchanged addresses."""
        row = placement.physical_to_logical_map[layer]
        live = [self.weights.fingerprint(layer, slot - self.ranks.slots.start) for slot in self.ranks.slots]
        wanted = [self.prints[layer][e] if e >= 0 else None for e in row[self.ranks.slots]]
        same = all(want in (None, have) for want, have in zip(wanted, live, strict=True))
        return same and self.tables.phy2log_LP[layer].tolist() == row.tolist() and self._addresses() == self.addresses

    def check(self, placement_of_layer):
        """Every layer holds its placement and serves."""
        for layer, placement in enumerate(placement_of_layer):
            assert self.holds(layer, placement), f"layer {layer}"
        assert self.serves()


def _expert(layer, expert):
    generator = torch.Generator().manual_seed(1000 * layer + expert)
    gate, up = torch.randint(-1, 2, (2, INNER, HIDDEN), generator=generator).float()
    return torch.stack([128 * gate, up]), torch.randint(-1, 2, (HIDDEN, INNER), generator=generator).float()


def _tokens(layer, num_experts):
    generator = torch.Generator().manual_seed(layer)
    x = torch.randint(-1, 2, (NUM_TOKENS, HIDDEN), generator=generator).float()
    experts = torch.stack([torch.randperm(num_experts, generator=generator)[:TOP_K] for _ in range(NUM_TOKENS)])
    return x.to(_device()), experts.to(_device())


def _run(weights, layer, x, slot):
    token, k = torch.nonzero((slot >= 0) & (slot < weights.shape.num_slots), as_tuple=True)
    order = torch.argsort(slot[token, k], stable=True)
    token, k = token[order], k[order]
    counts = torch.bincount(slot[token, k], minlength=weights.shape.num_slots)
    return torch.zeros_like(x).index_add_(0, token, weights.forward(layer, x[token], counts) * (k[:, None] + 1))


def placement(seed, topology, num_experts, num_layers=3, num_empty=0):
    """Any placement: every expert once, the other slots at random, some empty, duplicates on a rank allowed."""
    rng = np.random.default_rng(seed)
    num_extra = topology.num_slots - num_experts - num_empty
    rows = [
        rng.permutation([*range(num_experts), *rng.integers(0, num_experts, num_extra), *[-1] * num_empty])
        for _ in range(num_layers)
    ]
    return Placement(rows, num_experts, topology)


def pair(size, num_layers=3):
    """Two placements in which every process sends and receives in every layer."""
    topology = Topology(1, size, 4)
    first = np.arange(4 * size) % (3 * size)
    rows = [np.roll(first, layer) for layer in range(num_layers)]
    rolled = [np.roll(row, 5) for row in rows]
    return Placement(rows, 3 * size, topology), Placement(rolled, 3 * size, topology)


def case_any_migration_under_traffic(size):
    for seed in range(24 // size):
        topology = Topology(*((2, size // 2) if seed % 2 and size > 2 else (1, size)), 4)
        num_empty = seed % 3
        before = placement(seed, topology, 3 * size, num_empty=num_empty)
        after = placement(seed + 100, topology, 3 * size, num_empty=num_empty)
        world = World(before)
        assert world.serves()
        live = LiveMigration(Migration.between(before, after), world.weights, world.tables, world.ranks)
        assert live.layers == (0, 1, 2)
        for layer in live.layers:
            live.stage(layer)
            world.check([after] * layer + [before] * (3 - layer))
            live.commit(layer)
            world.check([after] * (layer + 1) + [before] * (2 - layer))
        assert world.tables.epoch_L.tolist() == [1, 1, 1]


def case_quantised_and_interleaved_weights_move_as_they_are(size):
    before, after = pair(size)
    for codec, layout in ((Fp8Blocks(), "split"), (Fp4Blocks(), "split"), (None, "interleaved")):
        world = World(before, codec, layout=GateUpLayout(layout))
        migrate(Migration.between(before, after), world.weights, world.tables, world.ranks)
        world.check([after] * 3)


def case_several_ranks_per_process(size):
    for num_ranks in (size, size + 1, 2 * size):
        topology = Topology(1, num_ranks, 3)
        before, after = placement(1, topology, 2 * num_ranks), placement(2, topology, 2 * num_ranks)
        world = World(before)
        migrate(Migration.between(before, after), world.weights, world.tables, world.ranks)
        world.check([after] * 3)


def case_an_expert_needed_twice_on_a_rank(size):
    topology = Topology(1, size, 3)
    row = np.arange(3 * size) % (2 * size)
    before = Placement([row], 2 * size, topology)
    # Rank 0 gets two replicas of the last rank's expert, which it does not hold, and keeps its own.
    wanted = int(row[-1])
    new = row.copy()
    new[:3] = [wanted, row[0], wanted]
    new[3:] = [e for e in [*range(2 * size)] if e not in new[:3]][: 3 * size - 3] + [0] * (size - 1)
    after = Placement([new], 2 * size, topology)
    world = World(before)
    migrate(Migration.between(before, after), world.weights, world.tables, world.ranks)
    world.check([after])


def case_nothing_to_move(size):
    before, _ = pair(size)
    world = World(before)
    migrate(Migration.between(before, before), world.weights, world.tables, world.ranks)
    world.check([before] * 3)
    assert world.tables.epoch_L.tolist() == [0, 0, 0]


def case_new_shares_are_published_without_transfers(size):
    before, _ = pair(size)
    counts = np.take_along_axis(before.logical_replica_count, before.physical_to_logical_map, axis=1)
    shares = 1.0 / counts
    after = Placement(before.physical_to_logical_map, before.num_experts, before.topology, shares)
    world = World(before)
    migrate(Migration.between(before, after), world.weights, world.tables, world.ranks)
    world.check([after] * 3)
    assert world.tables.epoch_L.tolist() == [1, 1, 1]


def case_exchanges_are_bounded(size):
    topology, sizes = Topology(1, size, 24), []
    before, after = (placement(seed, topology, 24 * size, num_layers=1) for seed in (5, 6))
    world, plan, send = World(before), Migration.between(before, after), dist.batch_isend_irecv

    def counting(operations):
        sizes.append(len(operations))
        return send(operations)

    dist.batch_isend_irecv = counting
    try:
        migrate(plan, world.weights, world.tables, world.ranks)
    finally:
        dist.batch_isend_irecv = send
    world.check([after])
    # One expert out and one in for each batch, each a header and two parts.
    assert plan.num_batches > BATCHES_PER_EXCHANGE
    assert len(sizes) > 1
    assert max(sizes) <= BATCHES_PER_EXCHANGE * 2 * 3


class Fault:
    """Raises, or corrupts, at one point on one rank, in one layer, the n-th time."""

    def __init__(self, point, rank, layer=0, *, nth=1, corrupt=False):
        self.point, self.rank, self.layer, self.nth, self.corrupt = point, rank, layer, nth, corrupt

    def __call__(self, point, layer, staging):
        if (point, layer, dist.get_rank()) != (self.point, self.layer, self.rank):
            return
        self.nth -= 1
        if self.nth:
            return
        if not self.corrupt:
            raise RuntimeError("injected")
        for parts in staging.values():  # received ones and those that local copies will fill
            parts["down.weight"].view(-1)[3] += 1


def _refused(call, message):
    with pytest.raises(MigrationError, match=re.escape(message)):
        call()


def _fails(size, fault, message, moved=0, transport=Transport.MESSAGES):
    """The fault stops the migration on all ranks after `moved` layers; everything serves; trying again succeeds."""
    before, after = pair(size)
    world, plan = World(before), Migration.between(before, after)
    live = LiveMigration(plan, world.weights, world.tables, world.ranks, fault, transport)

    def move():
        for layer in live.layers:
            live.stage(layer)
            live.commit(layer)

    _refused(move, message)
    world.check([after] * moved + [before] * (3 - moved))
    for layer in range(moved, 3):
        live.stage(layer)
        live.commit(layer)
    world.check([after] * 3)


def case_fault_while_preparing(size):
    _fails(size, Fault(MigrationPoint.PREPARED, size - 1), f"preparing layer 0: failed on rank {size - 1}")


def case_fault_while_exchanging(size):
    _fails(size, Fault(MigrationPoint.EXCHANGED, 0), "exchanging layer 0: failed on rank 0")


def case_fault_corrupted_payload(size):
    _fails(size, Fault(MigrationPoint.EXCHANGED, 1, corrupt=True), "checking layer 0: failed on rank 1")


def case_fault_after_staging(size):
    _fails(size, Fault(MigrationPoint.STAGED, 1), "checking layer 0: failed on rank 1")


def case_fault_between_slots_of_a_commit(size):
    _fails(size, Fault(MigrationPoint.COMMITTING, 0, nth=2), "committing layer 0: failed on rank 0")


def case_fault_while_publishing(size):
    _fails(size, Fault(MigrationPoint.PUBLISHED, 1), "publishing layer 0: failed on rank 1")


def case_fault_maps_that_do_not_fit_on_a_rank(size):
    """Rank 1 has no room for a third replica: its publish fails before it writes, the other ranks' has happened."""
    topology = Topology(1, size, 4)
    row = np.arange(4 * size) % (3 * size)
    new = np.concatenate([np.arange(3 * size), np.zeros(size, np.int64)])
    before, after = Placement([row], 3 * size, topology), Placement([np.roll(new, 4)], 3 * size, topology)
    world = World(before, max_replicas=2 if dist.get_rank() == 1 else None)
    _refused(
        lambda: migrate(Migration.between(before, after), world.weights, world.tables, world.ranks),
        "publishing layer 0: failed on rank 1",
    )
    world.check([before])
    assert world.tables.epoch_L.tolist() == [2]


def case_fault_between_layers(size):
    _fails(size, Fault(MigrationPoint.EXCHANGED, 1, layer=1), "exchanging layer 1: failed on rank 1", moved=1)
    _fails(size, Fault(MigrationPoint.COMMITTING, 0, layer=2), "committing layer 2: failed on rank 0", moved=2)


def case_fault_another_plan_on_a_rank(size):
    before, after = pair(size)
    world, plan = World(before), Migration.between(before, after if dist.get_rank() != 1 else before)
    _refused(lambda: migrate(plan, world.weights, world.tables, world.ranks), "planning the migration: rank 1 has plan")
    world.check([before] * 3)


def case_fault_another_epoch_on_a_rank(size):
    before, after = pair(size)
    world = World(before)
    world.tables.epoch_L[0] += dist.get_rank() == 1
    _refused(
        lambda: migrate(Migration.between(before, after), world.weights, world.tables, world.ranks),
        "preparing layer 0: rank 1 has epoch 1, rank 0 has 0",
    )
    world.check([before] * 3)


def case_fault_stale_maps_on_a_rank(size):
    before, after = pair(size)
    world = World(before)
    if dist.get_rank() == 1:
        row = np.roll(before.physical_to_logical_map[0], 1)
        world.tables.phy2log_LP[0] = torch.from_numpy(row.astype(np.int64))
    _refused(
        lambda: migrate(Migration.between(before, after), world.weights, world.tables, world.ranks),
        "preparing layer 0: failed on rank 1",
    )
    assert world.tables.epoch_L.tolist() == [0, 0, 0]


def case_fault_weights_of_other_sizes_on_a_rank(size):
    before, after = pair(size)
    world = World(before)
    shape = ExpertWeightsShape(num_layers=1, num_slots=1, hidden_size=HIDDEN, intermediate_size=INNER)
    weights, plan = ExpertWeights(shape, device=_device()), Migration.between(before, after)
    weights = weights if dist.get_rank() == 0 else world.weights
    _refused(lambda: migrate(plan, weights, world.tables, world.ranks), "planning the migration: failed on rank 0")
    world.check([before] * 3)


def case_fault_committing_what_is_not_staged(size):
    before, after = pair(size)
    world = World(before)
    live = LiveMigration(Migration.between(before, after), world.weights, world.tables, world.ranks)
    live.stage(1)
    _refused(lambda: live.commit(0), "committing layer 0: failed on rank 0")
    world.check([before] * 3)


def case_zz_fault_silent_peer(size):
    """Last, because it breaks its group: rank 1 never stages. NCCL ends a process whose peers are silent."""
    if dist.get_backend() == "nccl":
        return
    group = dist.new_group(timeout=timedelta(seconds=2))
    before, after = pair(size)
    world = World(before, group=group)
    live = LiveMigration(Migration.between(before, after), world.weights, world.tables, world.ranks)
    if dist.get_rank() != 1:
        _refused(lambda: live.stage(0), "the other ranks do not answer")
    dist.barrier()
    assert all(world.holds(layer, before) for layer in range(3))
    assert world.tables.epoch_L.tolist() == [0, 0, 0]


CASES = sorted(name for name in globals() if name.startswith("case_"))


def run_all(_member, _nothing):
    """Run every case in this process: name -> what went wrong, or nothing."""
    return run_cases({name: globals()[name] for name in CASES})


def run_cases(cases):
    """Run cases, each called with the number of processes."""
    reports = {}
    for name, case in cases.items():
        try:
            case(dist.get_world_size())
            reports[name] = ""
        except BaseException:  # what pytest.raises finds missing is no Exception
            reports[name] = traceback.format_exc()
    dist.barrier()
    return reports
