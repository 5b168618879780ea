"""Holds a placement as device tensors that a running layer reads.

L layers, E logical experts, P slots, R ranks, X largest number of replicas of an expert. Addresses never change:
`publish` writes in place, so captured graphs and running kernels read the new maps at the old addresses.
"""

from typing import final

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from eplb.core.dispatch_rule import FIXED_SLOT_RULES, DispatchRule
from eplb.core.placement import EMPTY_SLOT, Placement
from eplb.core.topology import Topology
from eplb.dispatch.engine_rules import rank_slot_map
from eplb.errors import InputError

WEIGHT_ONE = 1 << 32
"""A share of 1 in `weight_bound_LEX`; every 32-bit hash is smaller."""


@final
class PlacementTables:
    """The maps of all layers on one device, and the rule by which replicas are chosen from them.

    Parameters
    ----------
    placement
        The first placement, published as epoch 0 of every layer.
    rule
        How replicas are chosen; `weighted` needs a placement with `replica_weights`.
    device
        Where the tensors live.
    max_replicas
        X, largest number of replicas of one expert in later placements; None: as many as the slots allow.

    Raises
    ------
    InputError
        If an expert has more than `max_replicas` replicas, or the rule needs `replica_weights` and there are none.
    """

    topology: Topology
    num_experts: int
    rule: DispatchRule
    phy2log_LP: torch.Tensor
    """[L, P] int64 logical expert of each slot, -1 for an empty slot."""
    log2phy_LEX: torch.Tensor
    """[L, E, X] int64 slots of each expert, ascending, padded with -1."""
    logcnt_LE: torch.Tensor
    """[L, E] int64 number of slots of each expert."""
    weight_bound_LEX: torch.Tensor
    """[L, E, X] int64 cumulative replica weights times 2**32; even shares if the placement has no weights."""
    rank_slot_LRE: torch.Tensor
    """[L, R, E] int64 slot that each rank uses for each expert; [L, 0, E] under rules without such a table."""
    rank_of_slot_P: torch.Tensor
    """[P] int64."""
    node_of_rank_R: torch.Tensor
    """[R] int64."""
    epoch_L: torch.Tensor
    """[L] int64 number of times each layer was published after construction."""

    def __init__(
        self,
        placement: Placement,
        rule: DispatchRule = DispatchRule.EVEN,
        device: torch.device | str = "cpu",
        max_replicas: int | None = None,
    ) -> None:
        topology = placement.topology
        num_layers, num_experts = placement.num_layers, placement.num_experts
        most = topology.num_slots - num_experts + 1 if max_replicas is None else max_replicas
        self.topology, self.num_experts, self.rule = topology, num_experts, rule
        num_table_ranks = topology.num_ranks if rule in FIXED_SLOT_RULES else 0

        def table(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, dtype=torch.int64, device=device)

        self.phy2log_LP = table(num_layers, topology.num_slots)
        self.log2phy_LEX = table(num_layers, num_experts, most)
        self.logcnt_LE = table(num_layers, num_experts)
        self.weight_bound_LEX = table(num_layers, num_experts, most)
        self.rank_slot_LRE = table(num_layers, num_table_ranks, num_experts)
        self.rank_of_slot_P = _tensor(topology.rank_of_slot).to(device)
        self.node_of_rank_R = _tensor(topology.node_of_rank).to(device)
        self.epoch_L = table(num_layers)
        self._check_fits(placement)
        for layer in range(num_layers):
            self._write(layer, placement, layer)
        if rule in FIXED_SLOT_RULES:
            self.rank_slot_LRE.copy_(_tensor(rank_slot_map(placement, rule)))

    @property
    def num_layers(self) -> int:
        """L."""
        return self.phy2log_LP.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the tensors live."""
        return self.phy2log_LP.device

    def publish(self, layer: int, physical_to_logical_map: ArrayLike, replica_weights: ArrayLike | None = None) -> None:
        """Replace one layer's maps in place, then increment its epoch.

        Under `sglang_static` the layer gets the draws of the whole map that is then in force; the other layers keep
        theirs, as in SGLang, which replaces the rows of the layers that it updates.

        Parameters
        ----------
        layer
            The layer.
        physical_to_logical_map
            [P] logical expert of each slot, -1 for an empty slot.
        replica_weights
            [P] share of its expert's tokens that each slot receives; None: even shares.

        Raises
        ------
        PlacementError
            If the map is not a placement of these experts on this topology.
        InputError
            For a layer that does not exist, or too many replicas of an expert.
        """
        if not 0 <= layer < self.num_layers:
            raise InputError(f"layer = {layer}: expected 0 <= layer < {self.num_layers}")
        weights = None if replica_weights is None else np.asarray(replica_weights)[None]
        one_layer = Placement(np.asarray(physical_to_logical_map)[None], self.num_experts, self.topology, weights)
        self._check_fits(one_layer)
        self._write(layer, one_layer, 0)
        if self.rule in FIXED_SLOT_RULES:
            whole = Placement(self.phy2log_LP.cpu().numpy(), self.num_experts, self.topology)
            self.rank_slot_LRE[layer].copy_(_tensor(rank_slot_map(whole, self.rule)[layer]))
        self.epoch_L[layer] += 1

    def _check_fits(self, placement: Placement) -> None:
        most = int(placement.logical_replica_count.max())
        if most > self.log2phy_LEX.shape[2]:
            layer, expert = (int(i) for i in np.argwhere(placement.logical_replica_count == most)[0])
            raise InputError(
                f"expert {expert} of layer {layer} has {most} replicas: "
                f"the tables have room for max_replicas = {self.log2phy_LEX.shape[2]}"
            )
        if self.rule is DispatchRule.WEIGHTED and placement.replica_weights is None:
            raise InputError("replica rule = weighted: the placement carries no replica_weights")

    def _write(self, layer: int, placement: Placement, placed_layer: int) -> None:
        log2phy = placement.logical_to_physical_map[placed_layer]
        room = self.log2phy_LEX.shape[2]
        padded = np.full((self.num_experts, room), -1, dtype=np.int64)
        padded[:, : log2phy.shape[1]] = log2phy
        bounds = _weight_bounds(placement, placed_layer, padded)
        self.phy2log_LP[layer].copy_(_tensor(placement.physical_to_logical_map[placed_layer]))
        self.log2phy_LEX[layer].copy_(_tensor(padded))
        self.logcnt_LE[layer].copy_(_tensor(placement.logical_replica_count[placed_layer]))
        self.weight_bound_LEX[layer].copy_(_tensor(bounds))


def _tensor(array: NDArray[np.int32] | NDArray[np.int64]) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.int64))


def _weight_bounds(placement: Placement, layer: int, log2phy: NDArray[np.int64]) -> NDArray[np.int64]:
    """[E, X] cumulative weights in units of 2**-32; exactly 1 from an expert's last replica with weight on."""
    if placement.replica_weights is None:
        share = (log2phy != EMPTY_SLOT) / placement.logical_replica_count[layer][:, None]
    else:
        share = np.where(log2phy == EMPTY_SLOT, 0.0, placement.replica_weights[layer][log2phy])
    bounds = np.floor(np.cumsum(share, axis=1) * WEIGHT_ONE).astype(np.int64)
    last = log2phy.shape[1] - 1 - np.argmax(share[:, ::-1] > 0, axis=1)
    bounds[np.arange(log2phy.shape[1]) >= last[:, None]] = WEIGHT_ONE
    return bounds
