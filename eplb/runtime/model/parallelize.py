"""Replaces the experts of a Hugging Face model by those of a plan's ranks.

Every process holds the whole model except experts, and computes its own prompts (data parallel). In a MoE block its
tokens travel to the experts and back, so all processes must run the same number of forward passes: pass
`synced_gpus=True` to `generate` if their prompts may end at different steps.

T tokens of this process   K choices   H hidden   E experts   L MoE layers
"""

from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from eplb.core.dispatch_rule import DispatchRule, slot_shares
from eplb.core.migration import Migration
from eplb.core.placement import Placement
from eplb.core.problem import Plan
from eplb.errors import InputError
from eplb.runtime.agreement import summed_counts
from eplb.runtime.exchange.backend_choice import BackendChoice, choose_backend, make_backend
from eplb.runtime.exchange.limits import ExchangeLimits
from eplb.runtime.exchange.protocol import Backend
from eplb.runtime.exchange.rank_group import RankGroup
from eplb.runtime.exchange.symmetric.backend import Symmetric
from eplb.runtime.exchange.symmetric.region import BufferSizes
from eplb.runtime.exchange.symmetric.warm_up import warm_up
from eplb.runtime.experts.timed_experts import TimedExperts
from eplb.runtime.kernels.launch import interpreted
from eplb.runtime.layer.gate import GateChoice
from eplb.runtime.layer.placement_tables import PlacementTables
from eplb.runtime.layer.replica_choice import TokenSource
from eplb.runtime.layer.routing import route, source_counts
from eplb.runtime.live_migration import MigrationError, migrate
from eplb.runtime.model.moe_blocks import MoeBlock, moe_blocks, shape_of_blocks
from eplb.runtime.weights.checkpoint import StateDict, TensorSource
from eplb.runtime.weights.expert_weights import INTERLEAVE, ExpertWeights, ExpertWeightsShape, GateUpLayout
from eplb.runtime.weights.weight_loading import load_experts


@final
class ParallelModel:
    """The experts of this process, for all MoE layers of a model."""

    placement: Placement
    """The placement in force."""
    counts_LE: Tensor
    """[L, E] int64 selections of this process's tokens since construction, in logical experts."""
    exchange_reason: str
    """Why the tokens travel through this backend."""

    def __init__(  # noqa: PLR0913  # what it is made of
        self,
        placement: Placement,
        group: RankGroup,
        weights: ExpertWeights,
        tables: PlacementTables,
        backend: Backend,
        exchange_reason: str,
    ) -> None:
        self.placement, self.group, self.weights = placement, group, weights
        self.exchange_reason = exchange_reason
        self.tables, self.backend, self.experts = tables, backend, TimedExperts(weights)
        shape = (placement.num_layers, placement.num_experts)
        self.counts_LE = torch.zeros(shape, dtype=torch.int64, device=weights.device)

    def __repr__(self) -> str:
        """Sizes, ranks of this process, and what moves the tokens and computes the experts."""
        shape, ranks = self.weights.shape, self.group.ranks
        kernels = f"plain experts: {self.experts.reason}" if self.experts.reason else "timed experts"
        return (
            f"ParallelModel({shape.num_layers} layers, {shape.num_slots} slots of ranks {ranks.start} to "
            f"{ranks.stop - 1}, {self.backend.name}: {self.exchange_reason}, {kernels})"
        )

    def migrate(self, after: Placement) -> None:
        """Move to another placement between two forward passes; all processes call it with the same placement.

        Raises
        ------
        MigrationError
            On every process, if the migration stopped or a process has another placement; see `LiveMigration`. The
            layers that have moved are then those of `after` in `placement`, so the call may be repeated.
        """
        differs = torch.tensor([after != self.placement], device=self.weights.device)
        if not summed_counts(differs, self.group).any():
            return
        migration = Migration.between(self.placement, after, self.weights.expert_bytes)
        old_epoch_L = self.tables.epoch_L.clone()
        try:
            migrate(migration, self.weights, self.tables, self.group)
        except MigrationError:
            # A layer that moved was published once, one that was restored twice, the others not at all.
            has_moved_L = (self.tables.epoch_L - old_epoch_L).eq(1).cpu().numpy()
            self.placement = _by_layer(self.placement, after, has_moved_L)
            raise
        self.placement = after

    def apply(self, layer: int, x_TH: Tensor, choice: GateChoice) -> Tensor:
        """[T, H] the weighted sum of the chosen experts' outputs."""
        source = TokenSource.divided(self.group.ranks, x_TH.shape[0], x_TH.device)
        routing = route(choice, source, self.tables, layer, self.group)
        self.counts_LE[layer] += source_counts(choice.expert_ids_TK, source, self.tables).sum(dim=0)
        handle = self.backend.plan_exchange(routing)
        x_MH = self.backend.dispatch(x_TH, handle)
        return self.backend.combine(self.experts.forward(layer, x_MH, handle.rows.rows_per_slot_S), handle)


@final
class PlacedExperts(nn.Module):
    """Stands in a block where all experts of the layer stood."""

    def __init__(self, layer: int, parallel: ParallelModel) -> None:
        super().__init__()
        self._layer, self._parallel = layer, parallel

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """The block's call: tokens, ids and weights of their experts."""
        x_TH = hidden_states.reshape(-1, hidden_states.shape[-1])
        choice = GateChoice(top_k_index.to(torch.int64), top_k_weights.float())
        return self._parallel.apply(self._layer, x_TH, choice).view_as(hidden_states)


def parallelize(  # noqa: PLR0913  # one argument for each choice of the user
    model: nn.Module,
    plan: Plan,
    group: RankGroup,
    *,
    source: TensorSource | None = None,
    exchange: str = "auto",
    rule: DispatchRule = DispatchRule.EVEN,
    device: torch.device | None = None,
    most_tokens: int | None = None,
) -> ParallelModel:
    """Replace the experts in every MoE block of a model; the model is changed in place.

    Parameters
    ----------
    model
        A Qwen3-MoE, Mixtral, OLMoE, DeepSeek-V2 or DeepSeek-V3 model of `transformers` 5, the same on all processes.
    plan
        The placement of its experts.
    group
        The processes.
    source
        Where the experts are read from; only those of this process are read. By default from the model itself; with a
        checkpoint the model's own experts may be on the meta device.
    exchange
        Name of the exchange backend; see `make_backend`.
    rule
        How replicas are chosen.
    device
        Where the experts are stored; None: the device of the model. A model on the CPU can be moved there afterwards,
        without the experts that belong to other processes.
    most_tokens
        Largest number of tokens of one process in a forward pass. The exchange over peer memory needs it: without it
        "auto" does not consider that exchange. A larger batch raises `ExchangeOverflowError`.

    Returns
    -------
    ParallelModel
        The experts of this process, with recorded load and `migrate`.

    Raises
    ------
    InputError
        If the plan is for another model or other ranks than the group, the model has no known MoE block, or the
        exchange cannot be used.
    CheckpointError
        If the source lacks an expert.
    """
    blocks = moe_blocks(model)
    _check_plan(plan, blocks)
    group.check_slots_of(plan.placement.topology, "the plan")
    first, placement = blocks[0], plan.placement
    if device is None:
        device = next(parameter.device for parameter in model.parameters() if parameter.device.type != "meta")
    weights = _empty_weights(first, len(blocks), len(group.slots), device)
    experts = placement.physical_to_logical_map[:, group.slots.start : group.slots.stop]
    load_experts(
        weights,
        StateDict(model.state_dict()) if source is None else source,
        experts,
        first.num_experts,
        layer_ids=[block.layer_id for block in blocks],
    )
    tables = PlacementTables(placement, rule, device)
    sizes = None
    if most_tokens is not None:
        sizes = BufferSizes(most_tokens, first.top_k, first.hidden_size, first.dtype.itemsize)
    choice = BackendChoice(exchange, "as asked for")
    if exchange == "auto":
        choice = choose_backend(group, top_k=first.top_k, limits=ExchangeLimits(), sizes=sizes, device=device)
    backend = make_backend(choice.name, group, top_k=first.top_k, sizes=sizes, device=device)
    parallel = ParallelModel(placement, group, weights, tables, backend, choice.reason)
    if most_tokens is not None:
        _warm_up(parallel, group.num_processes * most_tokens * min(first.top_k, len(group.slots)))
    for layer, block in enumerate(blocks):
        block.module.register_module("experts", PlacedExperts(layer, parallel))
    return parallel


def _warm_up(parallel: ParallelModel, most_rows: int) -> None:
    """Compile and time the kernels for up to so many rows, then wait for all processes.

    Processes do so at different speeds, longer than one should wait for another in an exchange.
    """
    backend = parallel.backend
    if isinstance(backend, Symmetric) and not interpreted():
        warm_up(backend.state, backend.settings, parallel.weights.compute_dtype)
    parallel.experts.prepare_up_to(most_rows)
    summed_counts(parallel.counts_LE, parallel.group)


def _by_layer(before: Placement, after: Placement, has_moved_L: NDArray[np.bool_]) -> Placement:
    """The layers of `after` that have moved, the others of `before`."""
    moved_L1 = has_moved_L[:, None]
    maps = np.where(moved_L1, after.physical_to_logical_map, before.physical_to_logical_map)
    shares = None
    if before.replica_weights is not None or after.replica_weights is not None:
        shares = np.where(moved_L1, _shares(after), _shares(before))
    return Placement(maps, before.num_experts, before.topology, shares)


def _shares(placement: Placement) -> NDArray[np.float64]:
    """[L, P] the shares of the replicas, even ones if the placement has none."""
    shares = placement.replica_weights
    return slot_shares(placement, DispatchRule.EVEN) if shares is None else shares


def _check_plan(plan: Plan, blocks: list[MoeBlock]) -> None:
    shape = shape_of_blocks(blocks)
    plan.placement.check_model(shape, "model", name="plan")
    if plan.shape.moe_layer_ids not in (None, shape.moe_layer_ids):
        raise InputError(f"the plan's MoE layers are {plan.shape.moe_layer_ids}: the model's are {shape.moe_layer_ids}")


def _empty_weights(block: MoeBlock, num_layers: int, num_slots: int, device: torch.device) -> ExpertWeights:
    """Interleaved where the kernels of a GPU can use it."""
    shape = ExpertWeightsShape(
        num_layers=num_layers,
        num_slots=num_slots,
        hidden_size=block.hidden_size,
        intermediate_size=block.intermediate_size,
    )
    can_interleave = device.type == "cuda" and not block.intermediate_size % INTERLEAVE
    layout = GateUpLayout.INTERLEAVED if can_interleave else GateUpLayout.SPLIT
    return ExpertWeights(shape, compute_dtype=block.dtype, device=device, layout=layout)
