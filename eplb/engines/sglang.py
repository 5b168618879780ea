"""An EPLB algorithm for SGLang, with the signature of `eplb_algorithms.rebalance_experts`.

Written for SGLang 0.5.23 (`sglang/srt/eplb`). Several steps are planned as several windows. SGLang does not pass the
live map; `register` provides a function that reads it, so that a rebalance moves few replicas. Rows are all layers of
the model; dense layers have no load.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, final

import numpy as np
from numpy.typing import NDArray

from eplb.core.arrays import Ints
from eplb.core.placement import Placement
from eplb.core.topology import Topology
from eplb.engines.arrays import as_history, as_ids, like
from eplb.engines.policy import (
    MOST_WINDOWS,
    PolicyInputError,
    PolicySettings,
    call_topology,
    check_counts,
    new_map,
    settings_from_environment,
    warm_up,
)
from eplb.engines.registration import announce, engine_module, require

if TYPE_CHECKING:
    import torch

_ALGORITHMS = "sglang.srt.eplb.eplb_algorithms"
_LOCATION = "sglang.srt.eplb.expert_location"
_ELASTIC = "sglang.srt.elastic_ep.elastic_ep"


def unknown() -> None:
    """Default of the look-ups of `SglangAlgorithm`: returns None."""


@final
@dataclass(frozen=True, kw_only=True)
class SglangAlgorithm:
    """Replaces SGLang's EPLB algorithms.

    Parameters
    ----------
    settings
        How to plan; read from the environment by default, see `settings_from_environment`.
    live_map
        Returns the live map [layers, slots]; None at the start.
    active_ranks
        Returns which ranks [ranks] are active, for the "elasticity_aware" algorithms; None if all are.
    """

    settings: PolicySettings = field(default_factory=settings_from_environment)
    live_map: Callable[[], object | None] = unknown
    active_ranks: Callable[[], object | None] = unknown

    def rebalance_experts(  # noqa: PLR0913  # SGLang's signature
        self,
        tokens_per_expert: "torch.Tensor",
        num_physical_experts: int,
        num_local_physical_experts: int,
        num_groups: int | None,
        num_nodes: int,
        algorithm: object,
    ) -> "tuple[torch.Tensor, torch.Tensor, torch.Tensor]":
        """Plan all layers.

        Parameters
        ----------
        tokens_per_expert
            [steps, layers, num_logical_experts] or [layers, num_logical_experts] tokens, of any type and device. Steps
            without tokens, such as unused ones of SGLang's ring buffer, are ignored.
        num_physical_experts, num_local_physical_experts
            Slots, and slots of each rank.
        num_groups, num_nodes
            Expert groups or None, and nodes. If the nodes do not divide the ranks, the plan is for one node.
        algorithm
            The engine's choice, an enumeration or a name. Only "elasticity_aware" has an effect: ranks that are not
            active get no tokens, and expert 0 in all their slots.

        Returns
        -------
        tuple
            `physical_to_logical_map` [layers, slots], `logical_to_all_physical_map`
            [layers, num_logical_experts, X] padded with -1, and the replica counts [layers, num_logical_experts];
            int64 on the CPU.

        Raises
        ------
        PolicyInputError
            If SGLang's own algorithms would fail an assertion or divide by zero; also an AssertionError.
        InputError
            For an invalid load or live map.
        """
        history = as_history(tokens_per_expert, "tokens_per_expert", most_windows=MOST_WINDOWS)
        num_experts = history.shape[2]
        if num_local_physical_experts < 1 or num_physical_experts % num_local_physical_experts:
            raise PolicyInputError(
                f"num_local_physical_experts = {num_local_physical_experts}: expected a divisor of "
                f"num_physical_experts = {num_physical_experts}"
            )
        num_ranks = num_physical_experts // num_local_physical_experts
        slots = self._active_slots(num_ranks, num_local_physical_experts, algorithm)
        num_active = slots.size // num_local_physical_experts
        check_counts(num_experts, slots.size, num_active)
        topology = call_topology(
            slots.size, num_nodes=num_nodes if num_active == num_ranks else 1, num_ranks=num_active
        )
        live = self._live(history.shape[1], num_physical_experts, slots)
        made = new_map(history, topology, self.settings, num_groups=num_groups or 1, live=live)
        phy2log, log2phy, logcnt = _global_maps(made, num_experts, topology, slots, num_physical_experts)
        return like(tokens_per_expert, phy2log), like(tokens_per_expert, log2phy), like(tokens_per_expert, logcnt)

    def _active_slots(self, num_ranks: int, slots_per_rank: int, algorithm: object) -> Ints:
        """Slots of the active ranks."""
        name = str(getattr(algorithm, "name", algorithm))
        active = self.active_ranks() if name.startswith("elasticity_aware") else None
        slots = np.arange(num_ranks * slots_per_rank)
        if active is None:
            return slots
        is_active = as_ids(active, "active_ranks", dimensions="ranks") != 0
        if is_active.shape != (num_ranks,) or not is_active.any():
            raise PolicyInputError(
                f"active_ranks has {is_active.size} entries, {is_active.sum()} of them active: expected one for each "
                f"of {num_ranks} ranks, at least one active"
            )
        return slots[np.repeat(is_active, slots_per_rank)]

    def _live(self, num_layers: int, num_slots: int, slots: Ints) -> Ints | None:
        """[L, slots] live map of the active ranks; None at the start, or if the number of layers changed."""
        found = self.live_map()
        if found is None:
            return None
        live = as_ids(found, "the live map")
        if live.shape[0] != num_layers:
            return None
        return live[:, slots] if live.shape[1] == num_slots else live


def _global_maps(
    made: NDArray[np.int32], num_experts: int, topology: Topology, slots: Ints, num_slots: int
) -> tuple[Ints, Ints, Ints]:
    """The engine's three maps over all `num_slots` slots; the map `made` covers only `slots`."""
    maps = Placement(made, num_experts, topology).maps()
    phy2log = np.zeros((made.shape[0], num_slots), dtype=np.int64)
    phy2log[:, slots] = made
    log2phy = np.where(maps.logical_to_physical_map < 0, -1, slots[maps.logical_to_physical_map])
    return phy2log, log2phy, maps.logical_replica_count


def rebalance_experts(  # noqa: PLR0913  # SGLang's signature
    tokens_per_expert: "torch.Tensor",
    num_physical_experts: int,
    num_local_physical_experts: int,
    num_groups: int | None,
    num_nodes: int,
    algorithm: object,
) -> "tuple[torch.Tensor, torch.Tensor, torch.Tensor]":
    """Plan without a live map; see `SglangAlgorithm.rebalance_experts`."""
    return SglangAlgorithm().rebalance_experts(
        tokens_per_expert, num_physical_experts, num_local_physical_experts, num_groups, num_nodes, algorithm
    )


def register(settings: PolicySettings | None = None) -> SglangAlgorithm:
    """Make SGLang plan with `SglangAlgorithm` in this process, for every value of `--eplb-algorithm`.

    Must be called before the engine starts, in every process that holds experts; the plugin of this package does so.
    Settings are read from the environment by default.

    Raises
    ------
    EngineError
        If SGLang is not installed, or its version lacks the algorithms or the live map.
    """
    algorithms = engine_module(_ALGORITHMS, "sglang")
    require(vars(algorithms).get("rebalance_experts"), f"{_ALGORITHMS}.rebalance_experts", "sglang")
    location = engine_module(_LOCATION, "sglang")
    find = "get_global_expert_location_metadata"
    require(vars(location).get(find), f"{_LOCATION}.{find}", "sglang")

    def live_map() -> object | None:
        metadata = vars(location)[find]()
        return None if metadata is None else metadata.physical_to_logical_map_cpu

    ours = SglangAlgorithm(
        settings=settings_from_environment() if settings is None else settings,
        live_map=live_map,
        active_ranks=_engine_active_ranks,
    )
    vars(algorithms)["rebalance_experts"] = ours.rebalance_experts
    announce(f"{_ALGORITHMS}.rebalance_experts")
    warm_up(ours.settings)
    return ours


def _engine_active_ranks() -> object | None:
    """[ranks] active ranks of SGLang's manager of elastic expert parallelism; None if it has no state."""
    manager = vars(engine_module(_ELASTIC, "sglang"))["ElasticEPStateManager"].instance()
    return None if manager is None else manager.active_ranks
