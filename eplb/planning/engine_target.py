"""Describes an engine as the target of a plan: dispatch rule, file format, limits, metric, and its own algorithm."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final, final

import numpy as np

from eplb.core.baseline import EXPERTS_IN_ORDER
from eplb.core.dispatch_rule import DispatchRule
from eplb.core.placement import Placement
from eplb.core.problem import GroupMode, Plan
from eplb.core.topology import Topology
from eplb.dispatch.engine_dispatch import ChosenDispatch, engine_dispatch
from eplb.errors import FormatError, InputError
from eplb.evaluation.metrics import Evaluation
from eplb.formats import find_format
from eplb.formats.engine_check import ENGINES as LOADERS
from eplb.formats.engine_limits import MapDefect, check_equal_ranks, check_no_duplicates, check_no_empty_slots
from eplb_traces import ModelShape
from eplb_traces.display import facts_html


@final
@dataclass(frozen=True)
class OwnAlgorithm:
    """What an engine plans without eplb, in terms of our strategies.

    Parameters
    ----------
    strategy
        Name of the strategy.
    by_groups
        Whether it is hierarchical where the nodes divide the expert groups, and global otherwise, as DeepSeek's EPLB.
    label
        What it stands for.
    """

    strategy: str
    by_groups: bool
    label: str

    @property
    def plan_name(self) -> str:
        """What its plan is called in tables."""
        return EXPERTS_IN_ORDER if self.strategy == "linear" else self.strategy

    def group_mode(self, num_groups: int, topology: Topology) -> GroupMode:
        """The mode in which the engine plans for this topology."""
        pinned = self.by_groups and num_groups > 1 and num_groups % topology.num_nodes == 0
        return GroupMode.PINNED if pinned else GroupMode.FREE


@final
@dataclass(frozen=True)
class _Facts:
    """What is known of an engine besides its dispatch: file format, key and version of its metric, algorithm."""

    format: str
    metric: str
    metric_label: str
    own: OwnAlgorithm


_DEEPSEEK: Final = OwnAlgorithm("deepseek", by_groups=True, label="DeepSeek's EPLB")
_MAX_OVER_MEAN: Final = "max_over_mean_mean"
_FACTS: Final = MappingProxyType({
    "sglang": _Facts("sglang", "balancedness_sglang", "balancedness, SGLang 0.5.23", _DEEPSEEK),
    "vllm": _Facts("vllm", "balancedness_vllm", "balancedness, vLLM 0.33", _DEEPSEEK),
    "ascend": _Facts(
        "ascend",
        "par_ascend",
        "peak-to-average ratio, vllm-ascend 0.23.0",
        OwnAlgorithm("linear", by_groups=False, label="experts in order; its policies are not rebuilt here"),
    ),
    "mindie": _Facts(
        "ascend",
        _MAX_OVER_MEAN,
        "busiest / mean rank (MindIE publishes no metric)",
        OwnAlgorithm("linear", by_groups=False, label="experts in order; its algorithms are closed"),
    ),
    "trtllm": _Facts(
        "trtllm",
        "imbalance_ratio_trtllm",
        "imbalance ratio, TensorRT-LLM 1.2",
        OwnAlgorithm("deepseek", by_groups=False, label="DeepSeek's EPLB, global: its heap greedy measured alike"),
    ),
    "omni": _Facts(
        "omni",
        _MAX_OVER_MEAN,
        "busiest / mean rank (no metric of omni-infer was read)",
        OwnAlgorithm("linear", by_groups=False, label="experts in order; its optimiser is not rebuilt here"),
    ),
    "lmdeploy": _Facts("native", _MAX_OVER_MEAN, "busiest / mean rank (LMDeploy has no metric)", _DEEPSEEK),
    "deepseek": _Facts("deepseek", _MAX_OVER_MEAN, "busiest / mean rank (DeepSeek's EPLB has no metric)", _DEEPSEEK),
})  # fmt: skip


@final
@dataclass(frozen=True)
class EngineTarget:
    """An engine that will run a plan, with the options that decide its dispatch.

    Made by `named`; `eplb.dispatch.engine_dispatch` holds the rules with their sources.
    """

    engine: str
    chosen: ChosenDispatch

    @classmethod
    def named(cls, engine: str, options: Mapping[str, str] | None = None) -> "EngineTarget":
        """Find an engine.

        Parameters
        ----------
        engine
            A name of `eplb.dispatch.engine_dispatch.ENGINES`.
        options
            Options that decide its rule, such as ``{"a2a": "none"}`` for SGLang.

        Raises
        ------
        InputError
            For an unknown engine, option or value, and for options that the engine refuses.
        """
        return cls(engine, engine_dispatch(engine, options))

    def __repr__(self) -> str:
        return f"EngineTarget({self.engine}, dispatches by {self.rule}, format {self.format})"

    def _repr_html_(self) -> str:
        facts = {"dispatch rule": self.rule, "file format": self.format, "flags": self.chosen.flags}
        return facts_html(f"engine {self.engine}", facts)

    @property
    def rule(self) -> DispatchRule:
        """The dispatch rule that the engine follows."""
        return self.chosen.rule

    @property
    def format(self) -> str:
        """Name of the file format; native for an engine that loads no file."""
        return _FACTS[self.engine].format

    @property
    def own(self) -> OwnAlgorithm:
        """The engine's own algorithm."""
        return _FACTS[self.engine].own

    def notes(self, shape: ModelShape) -> tuple[str, ...]:
        """For the user: how the rule was found, its limits, and what is missing of the model."""
        row = self.chosen.row
        found = [f"{self.engine} {row.version} dispatches by {row.rule} ({row.evidence}: {row.source})"]
        if row.note:
            found.append(f"{self.engine}: {row.note}")
        if self.rule is DispatchRule.SGLANG_STATIC and (shape.moe_layer_ids is None or shape.num_hidden_layers is None):
            found.append(
                f"{self.engine}: the draws are those of a model without dense layers; where it has some, give "
                "--moe-layers and --hidden-layers"
            )
        return tuple(found)

    def metric(self, evaluation: Evaluation) -> tuple[str, float]:
        """The engine's own metric: its name with the engine's version, and its value.

        Raises
        ------
        InputError
            If the evaluation is under another dispatch rule than the engine's.
        """
        if evaluation.dispatch is not self.rule:
            raise InputError(
                f"engine {self.engine} dispatches by {self.rule}: the evaluation is under {evaluation.dispatch}"
            )
        facts = _FACTS[self.engine]
        return facts.metric_label, float(evaluation.balance[facts.metric])

    def check(self, placement: Placement) -> None:
        """Refuse a placement that the engine cannot run as it is.

        Raises
        ------
        FormatError
            With layer, rank and slot of an empty slot, a rank with another number of slots, a duplicate on a rank that
            the engine would lose, or nodes of different size that it cannot have.
        """
        loader = LOADERS.get(self.format)
        if loader is None:
            return
        ranks_of_node = np.bincount(placement.topology.node_of_rank)
        if self.engine == "sglang" and (ranks_of_node != ranks_of_node[0]).any():
            raise FormatError(
                f"nodes of {ranks_of_node.tolist()} ranks: SGLang divides the ranks evenly over the nodes; expected "
                "the same number on every node"
            )
        if MapDefect.EMPTY_SLOT in loader.consequences:
            check_no_empty_slots(loader.consequences, placement)
        check_equal_ranks(loader.consequences, placement)
        if MapDefect.DUPLICATE in loader.consequences:
            check_no_duplicates(loader.consequences, placement)

    def flags(self, path: Path, plan: Plan) -> str:
        """The flags that make the engine load the file and dispatch by the rule."""
        loading = find_format(self.format).server_flags(path, plan)
        return f"{loading}\n{self.chosen.flags}" if self.chosen.flags else loading
