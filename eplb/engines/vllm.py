"""An EPLB policy for vLLM, with the signature of `AbstractEplbPolicy`; starts from the live map and moves few replicas.

Written for vLLM 0.32 and 0.33 (`vllm/distributed/eplb/policy`): the policy returns one map and vLLM derives the others.
The only policy of vLLM is "default", so `register` replaces that entry of its table.
"""

import os
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, final

import numpy as np
from numpy.typing import NDArray

from eplb.core.placement import Placement
from eplb.engines.arrays import as_ids, as_load, like
from eplb.engines.for_engine import for_engine
from eplb.engines.policy import (
    PolicyInputError,
    PolicySettings,
    call_topology,
    check_counts,
    keep_live_slots,
    new_map,
    settings_from_environment,
    warm_up,
)
from eplb.engines.registration import announce, engine_module, require

if TYPE_CHECKING:
    import torch

PLAN_VARIABLE = "EPLB_POLICY_PLAN"
_TABLE = "vllm.distributed.eplb.policy"


def plan_from_environment() -> str | None:
    """The file in EPLB_POLICY_PLAN; None if it is not set."""
    return os.environ.get(PLAN_VARIABLE)


@final
@dataclass(frozen=True, kw_only=True)
class VllmPolicy:
    """A policy for vLLM's table; an instance replaces vLLM's class with class methods.

    Parameters
    ----------
    settings
        How to plan; read from the environment by default, see `settings_from_environment`.
    plan
        A placement file that is returned for every call, independent of the load, for offline plans; None to plan at
        every call. EPLB_POLICY_PLAN by default.
    """

    settings: PolicySettings = field(default_factory=settings_from_environment)
    plan: str | None = field(default_factory=plan_from_environment)

    def rebalance_experts(  # noqa: PLR0913  # vLLM's signature
        self,
        weight: "torch.Tensor",
        num_replicas: int,
        num_groups: int,
        num_nodes: int,
        num_ranks: int,
        old_global_expert_indices: "torch.Tensor | None" = None,
    ) -> "torch.Tensor":
        """Plan all layers.

        Parameters
        ----------
        weight
            [layers, num_logical_experts] tokens of each expert, of any type and device; a layer may have no load.
        num_replicas
            Slots; a multiple of `num_ranks`.
        num_groups, num_nodes, num_ranks
            Expert groups, nodes and ranks. If the nodes do not divide the ranks, the plan is for one node.
        old_global_expert_indices
            [layers, any] the live map; -1 in slots of ranks that have just joined, wider than `num_replicas` when ranks
            leave. None to plan from scratch.

        Returns
        -------
        torch.Tensor
            [layers, num_replicas] int64 on the CPU: expert of each slot. Experts that stay on a rank keep their slots.

        Raises
        ------
        PolicyInputError
            If vLLM's own policy would fail an assertion; also an AssertionError.
        InputError
            For an invalid load or live map, or a plan for another model or topology.
        """
        load: NDArray[np.float64] = as_load(weight)
        num_layers, num_experts = load.shape
        check_counts(num_experts, num_replicas, num_ranks)
        if num_groups >= 1 and num_groups % max(num_nodes, 1) == 0 and num_experts % num_groups:
            raise PolicyInputError(f"{num_experts} experts: expected a multiple of num_groups = {num_groups}")
        old = None if old_global_expert_indices is None else as_ids(old_global_expert_indices, "the live map")
        topology = call_topology(num_replicas, num_nodes=num_nodes, num_ranks=num_ranks)
        if self.plan is not None:
            planned = _planned_file(self.plan, num_ranks)
            found = (planned.num_layers, planned.num_slots, planned.num_experts)
            if found != (num_layers, num_replicas, num_experts):
                raise PolicyInputError(
                    f"{self.plan}: a plan of {found[0]} layers x {found[1]} slots for {found[2]} experts: "
                    f"expected {num_layers} x {num_replicas} for {num_experts} as in vLLM"
                )
            return like(weight, planned.maps().physical_to_logical_map)
        made = new_map(load[None], topology, self.settings, num_groups=max(num_groups, 1), live=old)
        return like(weight, made.astype(np.int64))

    @staticmethod
    def preserve_intragpu_slots(
        phy2log: NDArray[np.int64], num_ranks: int, old_phy2log: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Reorder the slots of every rank of a new map [layers, slots] so that experts that stay keep their slots."""
        if num_ranks <= 0 or phy2log.shape[1] % num_ranks or phy2log.shape != old_phy2log.shape:
            return phy2log
        kept = phy2log.astype(np.int32, order="C")
        keep_live_slots(old_phy2log, kept, num_ranks=num_ranks)
        return kept.astype(phy2log.dtype)


@cache
def _planned_file(path: str, num_ranks: int) -> Placement:
    """Read once per process; later changes of the file have no effect."""
    return for_engine(path, ep_size=num_ranks, ep_rank=0).placement


def register(policy: VllmPolicy | None = None) -> VllmPolicy:
    """Make vLLM plan with `policy` in this process; the policy is configured from the environment by default.

    Must be called before the engine starts, in every process that holds experts; the plugin of this package does so.

    Raises
    ------
    EngineError
        If vLLM is not installed or has no table of policies with a "default".
    """
    table = vars(engine_module(_TABLE, "vllm")).get("EPLB_POLICIES")
    place = f'{_TABLE}.EPLB_POLICIES["default"]'
    require(table.get("default") if isinstance(table, dict) else None, place, "vllm")
    policy = VllmPolicy() if policy is None else policy
    table["default"] = policy  # type: ignore[index]  # checked by `require`
    announce(place)
    warm_up(policy.settings)
    return policy
