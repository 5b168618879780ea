"""An EPLB policy for vllm-ascend, with the signature of its `EplbPolicy`.

Written for vllm-ascend 0.23.0 (`vllm_ascend/eplb/core/policy`). Results satisfy its `check_expert_placement`: every
expert has a slot, no device holds an expert twice, and an expert that stays on a device keeps its slot. The engine
reverts a layer that violates one of these rules.
"""

import logging
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, final

import numpy as np

from eplb.core.arrays import Floats, Ints
from eplb.core.dispatch_rule import DispatchRule
from eplb.core.placement import EMPTY_SLOT
from eplb.core.topology import Topology
from eplb.engines.arrays import as_ids, as_load, num_dimensions
from eplb.engines.policy import (
    PolicyInputError,
    PolicySettings,
    busiest_over_mean,
    call_topology,
    new_map,
    settings_from_environment,
    warm_up,
)
from eplb.engines.registration import announce, engine_module, require
from eplb_traces.expert_load import logical_counts

if TYPE_CHECKING:
    import torch

_logger = logging.getLogger("eplb")

_FACTORY = "vllm_ascend.eplb.core.policy.policy_factory"
_CLASS_OF_TYPE = {0: "RandomLoadBalance", 1: "DefaultEplb", 2: "SwiftBalanceEplb", 3: "FlashLB"}


@final
@dataclass(frozen=True, kw_only=True)
class AscendPolicy:
    """A policy for vllm-ascend's factory.

    Parameters
    ----------
    settings
        How to plan; read from the environment by default, see `settings_from_environment`. The dispatch rule is
        vllm-ascend's unless they give one.
    """

    settings: PolicySettings = field(default_factory=settings_from_environment)

    @property
    def _rule(self) -> DispatchRule:
        return DispatchRule.ASCEND if self.settings.dispatch is None else self.settings.dispatch

    def rebalance_experts(
        self, current_expert_table: "torch.Tensor", expert_workload: "torch.Tensor"
    ) -> tuple[int, list[int], list[list[list[int]]]]:
        """Plan all layers from the live table.

        Parameters
        ----------
        current_expert_table
            [layers, devices, slots] expert of each slot. A layer with empty slots (-1) is not changed.
        expert_workload
            [layers, devices, slots] tokens of each slot, or [stages, layers, devices, slots].

        Returns
        -------
        tuple
            1 if any layer changes, otherwise 0; the layers, largest improvement first; the new table as lists.

        Raises
        ------
        InputError
            For an invalid table or workload, or if their shapes differ.
        """
        table = as_ids(current_expert_table, "current_expert_table", dimensions="layers, devices, slots")
        staged = num_dimensions(expert_workload) == 4
        dimensions = "stages, layers, devices, slots" if staged else "layers, devices, slots"
        workload = as_load(expert_workload, "expert_workload", dimensions=dimensions)
        workload = workload if staged else workload[None]
        if workload.shape[1:] != table.shape:
            raise PolicyInputError(f"expert_workload has shape {workload.shape[1:]}: expected {table.shape}")
        num_layers, num_devices, slots_per_device = table.shape
        num_experts = int(table.max()) + 1
        if slots_per_device > num_experts:
            raise PolicyInputError(
                f"{slots_per_device} slots a device: expected at most {num_experts}, as a device holds each expert once"
            )
        live = table.reshape(num_layers, -1)
        history = _by_expert(workload.reshape(len(workload), num_layers, -1), live, num_experts)
        topology = call_topology(live.shape[1], num_nodes=1, num_ranks=num_devices)
        result = live.copy()
        full = (live != EMPTY_SLOT).all(axis=1)
        if full.any():
            settings = replace(self.settings, dispatch=self._rule)
            result[full] = new_map(history[:, full], topology, settings, live=live[full])
            total, seen = history.sum(axis=0)[full], workload.sum(axis=(0, 3))[full]
            _log_balance(total, seen, (live[full], result[full]), topology, self._rule)
        order: list[int] = np.argsort(
            _ratio(history.sum(axis=0), live, result, topology, self._rule), kind="stable"
        ).tolist()
        new_table = [devices.tolist() for devices in result.reshape(table.shape)]
        return int((result != live).any()), order, new_table


def _log_balance(
    total: Floats, seen: Floats, before_after: tuple[Ints, Ints], topology: Topology, rule: DispatchRule
) -> None:
    """Log what the devices [L, D] saw beside what the rule gives for the same tokens, and what the new map promises."""
    whole = np.array([np.unique(row).size == total.shape[1] for row in before_after[0]])
    loaded = whole & (seen.sum(axis=1) > 0)
    if not loaded.any():
        return
    measured = (seen[loaded].max(axis=1) / seen[loaded].mean(axis=1)).mean()
    expected, planned = (
        busiest_over_mean(total[loaded], phy2log[loaded].astype(np.int32), topology, rule).mean()
        for phy2log in before_after
    )
    _logger.info(
        "busiest over mean device, mean of %d layers: seen %.3f, expected under %s dispatch %.3f, planned %.3f",
        loaded.sum(), measured, rule, expected, planned,
    )  # fmt: skip


def _ratio(total: Floats, live: Ints, result: Ints, topology: Topology, rule: DispatchRule) -> Floats:
    """[L] load of the busiest device after / before; 1 if nothing changes, 0 if an expert had no slot before."""
    ratio = np.ones(live.shape[0])
    for layer in np.nonzero((result != live).any(axis=1))[0]:
        rows = [phy2log[[layer]].astype(np.int32) for phy2log in (live, result)]
        if np.unique(rows[0]).size < total.shape[1]:
            ratio[layer] = 0.0
            continue
        before, after = (busiest_over_mean(total[[layer]], row, topology, rule)[0] for row in rows)
        ratio[layer] = after / before if before > 0 else 1.0
    return ratio


def _by_expert(workload: Floats, live: Ints, num_experts: int) -> Floats:
    """[stages, layers, E] tokens of each expert, summed over its slots."""
    return logical_counts(np.where(live < 0, 0.0, workload), live, num_experts)


def register(policy: AscendPolicy | None = None, *, policy_type: int = 2) -> AscendPolicy:
    """Make vllm-ascend plan with `policy` in this process if its configuration selects `policy_type`.

    Must be called before the engine starts, in every process; the plugin of this package does so. The engine creates
    the policy in its worker and passes it to the planning process.

    Parameters
    ----------
    policy
        The policy; configured from the environment by default.
    policy_type
        `eplb_policy_type` of the engine's configuration. 2 is its default; with 3 the engine passes the workload of
        each stage.

    Raises
    ------
    PolicyInputError
        For a type that vllm-ascend does not have.
    EngineError
        If vllm-ascend is not installed or its policy factory differs.
    """
    if policy_type not in _CLASS_OF_TYPE:
        raise PolicyInputError(f"policy_type = {policy_type}: expected one of {', '.join(map(str, _CLASS_OF_TYPE))}")
    factory, name = engine_module(_FACTORY, "vllm-ascend"), _CLASS_OF_TYPE[policy_type]
    require(vars(factory).get(name), f"{_FACTORY}.{name}", "vllm-ascend")
    chosen = AscendPolicy() if policy is None else policy

    def eplb_policy() -> AscendPolicy:
        return chosen

    vars(factory)[name] = eplb_policy
    announce(f"{_FACTORY}.{name}")
    warm_up(chosen.settings)
    return chosen
