"""Executes a placement whose experts are cut by moe_tp on processes, and compares each token with the whole experts.

Q processes execute the world's moe_tp x moe_ep ranks: q_tp processes divide the cuts of an expert, q_ep = Q / q_tp the
ranks of the placement; neighbours hold cuts of the same experts, as in MindIE::

    process       0     1     2     3         Q = 4, moe_tp = 8, moe_ep = 2: q_tp = 4, q_ep = 1
    cuts         0 1   2 3   4 5   6 7        each of both EP ranks

Letters: T tokens of this process, K choices, H hidden, I intermediate size of a whole expert, E experts.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
import torch.distributed as dist
from torch import Tensor

from eplb.core.dispatch_rule import DispatchRule
from eplb.core.placement import Placement
from eplb.core.topology import Topology
from eplb.errors import InputError, VerificationError
from eplb.formats.mindie_layout import ParallelLayout
from eplb.runtime.exchange.backend_choice import make_backend
from eplb.runtime.exchange.rank_group import RankGroup
from eplb.runtime.exchange.symmetric.region import BufferSizes
from eplb.runtime.layer.gate import GateChoice
from eplb.runtime.layer.placement_tables import PlacementTables
from eplb.runtime.layer.tensor_parallel import TensorParallelLayer
from eplb.runtime.verification.injected_faults import Fault
from eplb.runtime.verification.launch import Launch, Member, run_processes
from eplb.runtime.verification.probe_experts import generator_of
from eplb.runtime.weights.expert_weights import DOWN, GATE_UP, ExpertWeights, ExpertWeightsShape
from eplb.runtime.weights.quantization import Dense, Fp4Blocks, Fp8Blocks, WeightCodec
from eplb.runtime.weights.shards import Shard, shard_parts

GROUPED_ABOVE = 32
"""Experts of a rank above which MindIE multiplies them in one grouped matmul ("Expert Parallelism" page)."""
ARITHMETIC = {"gloo": (torch.float32, 1e-4), "nccl": (torch.bfloat16, 3e-2)}
"""Type of the rows, and the largest error allowed: GPUs have a grouped matmul for bf16 only."""
_CHANNELS_OF_A_CUT = 128
CODECS: tuple[WeightCodec, ...] = (Dense(torch.bfloat16), Fp8Blocks(), Fp4Blocks())


@final
@dataclass(frozen=True, kw_only=True)
class TensorParallelJob:
    """The arguments of every process."""

    placement: Placement
    """Over moe_ep ranks."""
    layout: ParallelLayout
    layer: int
    rule: DispatchRule
    exchange: str
    tokens_per_rank: int
    top_k: int
    hidden: int
    fault: Fault = Fault.NONE
    seed: int = 0


@final
@dataclass(frozen=True)
class TensorParallelReport:
    """The result of an execution."""

    job: TensorParallelJob
    max_error: dict[str, float]
    """Largest error of a token by storage, relative to the largest output."""
    tolerance: float

    @property
    def failures(self) -> list[str]:
        """Storages with an error above the tolerance."""
        return [name for name, error in self.max_error.items() if not error <= self.tolerance]

    def raise_on_failure(self) -> None:
        """Raise VerificationError if a token differs from the whole experts' result."""
        if self.failures:
            worst = self.failures[0]
            raise VerificationError(
                f"tensor parallel experts, {worst}: error {self.max_error[worst]:.1e}: "
                f"expected at most {self.tolerance}"
            )

    def summary(self) -> dict[str, object]:
        """The result by name, as `--json` prints it."""
        names = ("rank", "ep_rank", "experts", "part", "matmul")
        held = [dict(zip(names, row, strict=True)) for row in self.holdings()]
        return {"max_error": self.max_error, "ranks": held}

    def holdings(self) -> list[tuple[int, int, str, str, str]]:
        """For each rank of the world: its EP rank, experts, part of each expert, and how it multiplies them.

        Part 3 of 8 is the third eighth of gate's and up's rows and of down's columns.
        """
        layout, placement = self.job.layout, self.job.placement
        rows = []
        for rank in range(layout.world_size):
            ep_rank = layout.placement_rank(rank)
            first, last = placement.topology.rank_first_slot[ep_rank : ep_rank + 2]
            experts = placement.physical_to_logical_map[self.job.layer, first:last]
            held = sorted(experts[experts >= 0].tolist())
            part = f"{rank % layout.moe_tp + 1} of {layout.moe_tp}"
            rows.append((rank, ep_rank, _ranges(held), part, matmul_of(last - first)))
        return rows


def matmul_of(num_slots: int) -> str:
    """How MindIE multiplies so many experts of a rank: "grouped" above 32, else "loop"."""
    return "grouped" if num_slots > GROUPED_ABOVE else "loop"


def verify_tensor_parallel(job: TensorParallelJob, launch: Launch) -> TensorParallelReport:
    """Execute one layer on processes, in bf16, FP8 and FP4 storage, and compare with a dense reference.

    Raises
    ------
    InputError
        If the processes cannot divide the world's ranks.
    """
    process_grid(job.layout, launch.num_processes)
    if job.placement.topology.num_ranks != job.layout.moe_ep:
        raise InputError(
            f"placement for {job.placement.topology.num_ranks} ranks: expected moe_ep = {job.layout.moe_ep}"
        )
    answers = run_processes(launch, run_member, job)
    errors = {name: max(answer[name] for answer in answers) for name in answers[0]}
    return TensorParallelReport(job, errors, ARITHMETIC[launch.communicator][1])


def process_grid(layout: ParallelLayout, num_processes: int) -> tuple[int, int]:
    """(q_tp, q_ep): as many processes as possible divide the cuts.

    Raises
    ------
    InputError
        If no such division uses all processes.
    """
    for over_cuts in range(min(layout.moe_tp, num_processes), 0, -1):
        over_ranks = num_processes // over_cuts
        if layout.moe_tp % over_cuts == 0 and num_processes % over_cuts == 0 and over_ranks <= layout.moe_ep:
            return over_cuts, over_ranks
    raise InputError(
        f"processes = {num_processes}: expected a divisor of moe_tp = {layout.moe_tp} times at most "
        f"moe_ep = {layout.moe_ep}"
    )


def run_member(member: Member, job: TensorParallelJob) -> dict[str, float]:
    """The largest error of this process's tokens, by storage."""
    over_cuts, over_ranks = process_grid(job.layout, dist.get_world_size())
    group, peers = _groups(member, job, over_cuts, over_ranks)
    own = job.layout.moe_tp // over_cuts
    cuts = range(member.process % over_cuts * own, (member.process % over_cuts + 1) * own)
    tables = PlacementTables(job.placement, job.rule, member.device)
    backend = make_backend(
        job.exchange, group, top_k=job.top_k, sizes=_largest_batch(job, over_cuts), device=member.device
    )
    x_TH, choice = _batch(member, job)
    errors = {}
    for codec in CODECS:
        shards = tuple(_cut_experts(job, codec, Shard(cut, job.layout.moe_tp), group, member.device) for cut in cuts)
        if job.fault is Fault.SWAP_WEIGHTS and member.process == dist.get_world_size() - 1:
            shards[0].swap_first_slots()
        layer = TensorParallelLayer(job.layer, tables, group, backend, shards, peers)
        errors[codec.name] = _error(job, codec, x_TH, choice, layer(x_TH, choice))
    return errors


def _groups(member: Member, job: TensorParallelJob, over_cuts: int, over_ranks: int) -> tuple[RankGroup, RankGroup]:
    """The EP group and the peers of this process; all processes create all groups, in the same order."""
    peers, group = RankGroup(Topology(1, 1, 1)), RankGroup(job.placement.topology)
    for row in range(over_ranks):
        ranks = list(range(row * over_cuts, (row + 1) * over_cuts))
        made = dist.new_group(ranks)
        if member.process in ranks and over_cuts > 1 and made is not None:
            peers = RankGroup.of(Topology(1, over_cuts, 1), made)
    for column in range(over_cuts):
        ranks = list(range(column, over_cuts * over_ranks, over_cuts))
        made = dist.new_group(ranks)
        if member.process in ranks and over_ranks > 1 and made is not None:
            group = RankGroup.of(job.placement.topology, made)
    return group, peers


@final
class _CutExperts:
    """`SlotExperts` of one cut; multiplies as MindIE does."""

    def __init__(self, weights: ExpertWeights, *, matmul: str) -> None:
        self._weights, self._matmul = weights, matmul

    def forward(self, layer: int, x_RH: Tensor, rows_per_slot: Tensor) -> Tensor:
        """See `SlotExperts`."""
        apply = self._weights.forward if self._matmul == "grouped" else self._weights.looped
        return apply(0, x_RH, rows_per_slot)

    def swap_first_slots(self) -> None:
        """Exchange the down matrices of the first two slots: the injected fault."""
        part = self._weights.layer_parts(0)[f"{DOWN}.weight"].view(torch.uint8)
        part[:2] = part[:2].flip(0).clone()


def _cut_experts(
    job: TensorParallelJob, codec: WeightCodec, cut: Shard, group: RankGroup, device: torch.device
) -> _CutExperts:
    """The cut of each expert of the group's slots, encoded whole and then cut."""
    shape = ExpertWeightsShape(
        num_layers=1, num_slots=len(group.slots), hidden_size=job.hidden, intermediate_size=_CHANNELS_OF_A_CUT
    )
    dtype, _ = ARITHMETIC[dist.get_backend()]
    weights = ExpertWeights(shape, codec, compute_dtype=dtype, device=device)
    row = job.placement.physical_to_logical_map[job.layer]
    for slot in group.slots:
        if row[slot] >= 0:
            stored = dict(_encoded(job, codec, int(row[slot])))
            inner = job.layout.moe_tp * _CHANNELS_OF_A_CUT
            parts = shard_parts(stored, cut, intermediate_size=inner, block=codec.block)
            weights.write_parts(0, slot - group.slots.start, parts)
    slots_of_a_rank = int(job.placement.topology.rank_first_slot[1])
    return _CutExperts(weights, matmul=matmul_of(slots_of_a_rank))


def _encoded(job: TensorParallelJob, codec: WeightCodec, expert: int) -> Iterator[tuple[str, Tensor]]:
    gate_up_2IH, down_HI = _whole_expert(job, expert)
    for name, matrix in ((GATE_UP, gate_up_2IH), (DOWN, down_HI)):
        for part, tensor in codec.encode(matrix).items():
            yield f"{name}.{part}", tensor


def _whole_expert(job: TensorParallelJob, expert: int) -> tuple[Tensor, Tensor]:
    """Gate and up [2, I, H] and down [H, I] of a logical expert, the same on every process."""
    generator = generator_of(job.seed, job.layer, expert)
    inner = job.layout.moe_tp * _CHANNELS_OF_A_CUT
    gate_up = torch.randn((2, inner, job.hidden), generator=generator) / job.hidden**0.5
    return gate_up, torch.randn((job.hidden, inner), generator=generator) / inner**0.5


def _largest_batch(job: TensorParallelJob, over_cuts: int) -> BufferSizes:
    """What a process dispatches at most: its own tokens, see `_batch`, and as many of each of its peers."""
    tokens = max(job.tokens_per_rank * job.layout.world_size // dist.get_world_size(), 1)
    dtype, _ = ARITHMETIC[dist.get_backend()]
    return BufferSizes(over_cuts * tokens, job.top_k, job.hidden, dtype.itemsize)


def _batch(member: Member, job: TensorParallelJob) -> tuple[Tensor, GateChoice]:
    """Tokens of the world's ranks that this process executes, one fewer on each next process, and random choices."""
    num_tokens = job.tokens_per_rank * job.layout.world_size // dist.get_world_size() - member.process
    num_tokens = max(num_tokens, 1)
    generator = generator_of(job.seed, member.process)
    x_TH = torch.randn((num_tokens, job.hidden), generator=generator)
    scores_TE = torch.rand((num_tokens, job.placement.num_experts), generator=generator)
    weight_TK = torch.rand((num_tokens, job.top_k), generator=generator)
    choice = GateChoice(scores_TE.topk(job.top_k).indices, weight_TK)
    dtype, _ = ARITHMETIC[dist.get_backend()]
    return x_TH.to(member.device, dtype), GateChoice(*(tensor.to(member.device) for tensor in choice))


def _error(job: TensorParallelJob, codec: WeightCodec, x_TH: Tensor, choice: GateChoice, y_TH: Tensor) -> float:
    """Largest difference from whole experts in float64, token by token, over the largest output."""
    x_TH, found_TH = x_TH.double().cpu(), y_TH.double().cpu()
    ids_TK, weight_TK = choice.expert_ids_TK.cpu(), choice.weight_TK.double().cpu()
    expected_TH = torch.zeros_like(x_TH)
    for expert in sorted(set(ids_TK.flatten().tolist())):
        gate_up_2IH, down_HI = _whole_expert(job, expert)
        gate, up = codec.decode(codec.encode(gate_up_2IH), torch.float32).double()
        down = codec.decode(codec.encode(down_HI), torch.float32).double()
        token, place = (ids_TK == expert).nonzero(as_tuple=True)
        gated = x_TH[token] @ gate.T
        gated = gated / (1 + (-gated).exp()) * (x_TH[token] @ up.T)
        expected_TH.index_add_(0, token, gated @ down.T * weight_TK[token, place, None])
    return float((found_TH - expected_TH).abs().max() / expected_TH.abs().max())


def _ranges(numbers: list[int]) -> str:
    """Numbers as "0-31, 40"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
