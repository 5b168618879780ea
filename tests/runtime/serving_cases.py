"""What each process of test_serving does: serve steps through MoE layers while traffic drifts and experts move.

Weights are integers with gates in multiples of 128, where SwiGLU is exact: outputs are equal bit for bit or wrong.
"""

from dataclasses import dataclass

import torch

from eplb.core.migration import Migration
from eplb.core.placement import Placement
from eplb.core.topology import Topology
from eplb.errors import VerificationError
from eplb.online import OnlineSettings, Rebalancer
from eplb.runtime import (
    AllToAll,
    ExpertWeights,
    ExpertWeightsShape,
    GateChoice,
    LiveMigration,
    Member,
    MoeLayer,
    PlacementTables,
    RankGroup,
    TokenSource,
)
from eplb.runtime.agreement import check_agreement, summed_counts
from tests.runtime.migration_cases import HIDDEN, INNER, _expert

LAYERS, TOKENS, TOP_K, STEPS, DRIFT_AT = 2, 48, 2, 48, 24
SETTINGS = OnlineSettings(interval=6, window=12, half_life=4.0, plan_steps=2, price=0.005, expert_bytes=1.0)


@dataclass
class Script:
    """The router of these tests: it says what the script of this step and layer says."""

    choice: GateChoice

    def __call__(self, x_TH, token_ids_T):
        return GateChoice(self.choice.expert_ids_TK[token_ids_T], self.choice.weight_TK[token_ids_T])


@dataclass
class Served:
    """What one process saw."""

    digests: list[int]
    exact: bool
    migrations: list[int]
    """Copies moved by each."""
    balance: list[float]
    """[STEPS] busiest over mean rank of layer 0."""


class World:
    """One process's share of a model that is being served."""

    def __init__(self, member: Member) -> None:
        size = member.process_group.size()
        self.num_experts = 3 * size
        topology = Topology(1, size, 4)
        row = [expert % self.num_experts for expert in range(4 * size)]
        placement = Placement([row] * LAYERS, self.num_experts, topology)
        self.ranks, self.device = RankGroup.of(topology, member.process_group), member.device
        self.tables = PlacementTables(placement, device=self.device)
        self.weights, self.truth = self._new_weights(len(self.ranks.slots)), self._new_weights(self.num_experts)
        for layer in range(LAYERS):
            for expert in range(self.num_experts):
                self.truth.write_dense(layer, expert, *_expert(layer, expert))
            for slot in self.ranks.slots:
                self.weights.write_dense(layer, slot - self.ranks.slots.start, *_expert(layer, row[slot]))
        self.rebalancer = Rebalancer(placement, SETTINGS)
        self.moving: tuple[Migration, LiveMigration, list[int]] | None = None

    def _new_weights(self, num_slots):
        shape = ExpertWeightsShape(num_layers=LAYERS, num_slots=num_slots, hidden_size=HIDDEN, intermediate_size=INNER)
        return ExpertWeights(shape, compute_dtype=torch.float32, device=self.device)

    def serve(self, step: int, served: Served) -> torch.Tensor:
        """One step of all layers; [L, E] tokens of all processes."""
        counts = torch.zeros((LAYERS, self.num_experts), dtype=torch.int64, device=self.device)
        source = TokenSource.consecutive(self.ranks.ranks.start, [TOKENS], self.device)
        for layer in range(LAYERS):
            x_TH, choice = self._batch(step, layer)
            backend = AllToAll(self.ranks)
            moe = MoeLayer(layer, Script(choice), self.tables, self.ranks, backend, self.weights)
            result = moe(x_TH, torch.arange(TOKENS, device=self.device), source)
            served.exact &= torch.equal(result.y_TH, self._expected(layer, x_TH, choice))
            counts[layer] = torch.bincount(result.choice.expert_ids_TK.flatten(), minlength=self.num_experts)
        total = summed_counts(counts, self.ranks).to(self.device)
        rank_rows = torch.bincount(
            self.tables.rank_of_slot_P,
            (total[0] / self.tables.logcnt_LE[0])[self.tables.phy2log_LP[0]],
        )
        served.balance.append(float(rank_rows.max() / rank_rows.mean()))
        return total.cpu()

    def _batch(self, step, layer):
        """This process's tokens, the same on every device: a few experts are hot, others after the drift."""
        generator = torch.Generator().manual_seed(10_000 * step + 100 * layer + self.ranks.process)
        rate_E = torch.ones(self.num_experts)
        first = 0 if step < DRIFT_AT else self.num_experts // 2
        rate_E[first : first + 3] = torch.tensor([8.0, 6.0, 4.0])
        ids_TK = torch.multinomial(rate_E.expand(TOKENS, -1), TOP_K, generator=generator)
        weight_TK = torch.randint(1, 9, (TOKENS, TOP_K), generator=generator) / 8
        x_TH = torch.randint(-1, 2, (TOKENS, HIDDEN), generator=generator).float()
        return x_TH.to(self.device), GateChoice(ids_TK.to(self.device), weight_TK.to(self.device))

    def _expected(self, layer, x_TH, choice):
        """From the weights of all experts, choice by choice, without slots and ranks."""
        y_TH = torch.zeros_like(x_TH)
        for k in range(TOP_K):
            ids_T, order = torch.sort(choice.expert_ids_TK[:, k], stable=True)
            rows = self.truth.forward(layer, x_TH[order], torch.bincount(ids_T, minlength=self.num_experts))
            y_TH[order] += rows * choice.weight_TK[order, k, None]
        return y_TH

    def move(self, served: Served) -> None:
        """Between two steps: begin a migration, or move one layer of the one under way."""
        migration = self.rebalancer.step()
        check_agreement(self.rebalancer.digest(), self.ranks, self.device)
        served.digests.append(self.rebalancer.digest())
        if migration is not None:
            served.migrations.append(migration.moved_copies)
            live = LiveMigration(migration, self.weights, self.tables, self.ranks)
            self.moving = (migration, live, list(live.layers))
        elif self.moving is not None:
            migration, live, layers = self.moving
            if layers:
                live.stage(layers[0])
                live.commit(layers.pop(0))
            else:
                self.rebalancer.commit(migration)
                self.moving = None


def serve_and_disagree(member: Member, _nothing: None) -> tuple[Served, dict[str, tuple[str, str, int]]]:
    """Both of what follows, in the same processes: starting them is slow."""
    return _serve_and_move(member), {corrupt: _disagree(member, corrupt) for corrupt in ("counts", "digest")}


def _serve_and_move(member: Member) -> Served:
    """Serve all steps; the load drifts, the rebalancer decides, layers move between steps."""
    world, served = World(member), Served([], True, [], [])
    with world.rebalancer:
        for step in range(STEPS):
            world.rebalancer.record(world.serve(step, served))
            world.move(served)
    return served


def _disagree(member: Member, corrupt: str) -> tuple[str, str, int]:
    """Serve until one process differs at step 2; what check_agreement says, and when."""
    world, served = World(member), Served([], True, [], [])
    with world.rebalancer:
        for step in range(4):
            counts = world.serve(step, served)
            is_bad = step == 2 and member.process == 1
            if corrupt == "counts" and is_bad:
                counts[0, 0] += 1
            world.rebalancer.record(counts)
            world.rebalancer.step()
            digest = world.rebalancer.digest()
            try:
                check_agreement(digest ^ 1 if corrupt == "digest" and is_bad else digest, world.ranks, world.device)
            except VerificationError as error:
                return type(error).__name__, str(error), step
    return "nothing", "", -1
