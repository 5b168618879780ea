"""Tells which dispatch rule an engine follows, by its version and by the flags that decide.

A row of the table is one case: the options that select it, the rule, where the rule was found and how it was checked.
An engine's first row is its default; options select the first row that they do not contradict.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, final

from eplb.core.dispatch_rule import DispatchRule
from eplb.errors import InputError, UnknownNameError


class Evidence(StrEnum):
    """How the rule of a row was established."""

    RUN = "run"
    """The engine's own code is run in the tests and compared with our evaluation."""
    READ = "read"
    """Read in the engine's source; not run."""
    ASSUMED = "assumed"
    """Not published, or not found: an even split is assumed."""


@final
@dataclass(frozen=True, kw_only=True)
class EngineDispatch:
    """One row of the table.

    Parameters
    ----------
    engine
        Name of the engine.
    version
        The version, or versions, that the row was checked for.
    options
        {option: values} that select the row.
    rule
        The rule; None where the engine refuses the options or no rule describes them: `note` gives the reason.
    flags
        Flags of the engine that lead to the rule; empty where none does.
    source
        File and function of the engine.
    evidence
        How the rule was established.
    note
        What a user should be told besides.
    """

    engine: str
    version: str
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    rule: DispatchRule | None
    flags: str = ""
    source: str
    evidence: Evidence
    note: str = ""

    def allows(self, given: Mapping[str, str]) -> bool:
        """Whether no given option contradicts the row."""
        return all(value in self.options[name] for name, value in given.items() if name in self.options)


_BACKENDS: Final = (
    *("deepep", "deepep_v2", "mooncake", "nixl", "mori", "pplx", "flashinfer", "flashinfer_megamoe", "megamoe"),
    *("ascend_fuseep", "ascend_tp"),
)
"""Values of SGLang's --moe-a2a-backend besides none; the first is the one that eplb's flags name."""
_NO_BACKEND: Final = ("none",)
_LOCATION: Final = "srt/eplb/expert_location.py"
_DISPATCH: Final = "srt/eplb/expert_location_dispatch.py"
_SGLANG: Final = (
    EngineDispatch(
        engine="sglang",
        version="0.5.23",
        options={"a2a": _BACKENDS, "algorithm": ("static",), "map": ("file",)},
        rule=DispatchRule.SGLANG_STATIC,
        flags="--moe-a2a-backend {a2a} --ep-dispatch-algorithm static",
        source=f"{_LOCATION}: init_by_mapping, compute_logical_to_rank_dispatch_physical_map",
        evidence=Evidence.RUN,
        note="the default of a server with an all-to-all backend that loads a file",
    ),
    EngineDispatch(
        engine="sglang",
        version="0.5.23",
        options={"a2a": _BACKENDS, "algorithm": ("dynamic",), "map": ("file",)},
        rule=DispatchRule.SGLANG_DYNAMIC,
        flags="--moe-a2a-backend {a2a} --ep-dispatch-algorithm dynamic",
        source=f"{_LOCATION}: _compute_logical_to_all_physical_map; {_DISPATCH}: topk_ids_logical_to_physical",
        evidence=Evidence.RUN,
    ),
    EngineDispatch(
        engine="sglang",
        version="0.5.23",
        options={"a2a": _BACKENDS, "algorithm": ("static",), "map": ("rebalanced",)},
        rule=DispatchRule.SGLANG_STATIC,
        flags="--enable-eplb --moe-a2a-backend {a2a} --ep-dispatch-algorithm static",
        source=f"{_LOCATION}: init_by_eplb, compute_logical_to_rank_dispatch_physical_map",
        evidence=Evidence.RUN,
        note="after an online rebalance all ranks share one draw, so the draws of ranks without a nearest replica are "
        "more even than those evaluated here, which are a file's",
    ),
    EngineDispatch(
        engine="sglang",
        version="0.5.23",
        options={"a2a": _BACKENDS, "algorithm": ("dynamic",), "map": ("rebalanced",)},
        rule=DispatchRule.EVEN,
        flags="--enable-eplb --moe-a2a-backend {a2a} --ep-dispatch-algorithm dynamic",
        source=f"{_LOCATION}: init_by_eplb; {_DISPATCH}: topk_ids_logical_to_physical",
        evidence=Evidence.RUN,
        note="after an online rebalance the candidates of a rank are all replicas, near and far",
    ),
    EngineDispatch(
        engine="sglang",
        version="0.5.23",
        options={"a2a": _NO_BACKEND, "algorithm": ("dynamic",), "map": ("file", "rebalanced")},
        rule=DispatchRule.SGLANG_BY_ROW,
        flags="--moe-a2a-backend none --ep-dispatch-algorithm dynamic",
        source=f"{_DISPATCH}: topk_ids_logical_to_physical",
        evidence=Evidence.RUN,
        note="every rank runs the same tokens; a batch of one row uses the first replica of each expert only",
    ),
    EngineDispatch(
        engine="sglang",
        version="0.5.23",
        options={"a2a": _BACKENDS, "algorithm": ("lp",)},
        rule=None,
        source=f"{_DISPATCH}: topk_ids_logical_to_physical",
        evidence=Evidence.READ,
        note="no rule describes lp: it solves a linear program for each batch over the candidates of each rank; "
        "--dispatch online is the best split without that limit",
    ),
    EngineDispatch(
        engine="sglang",
        version="0.5.23",
        options={"a2a": _NO_BACKEND, "algorithm": ("static", "lp")},
        rule=None,
        source="srt/arg_groups/parallel_hook.py: handle_eplb_and_dispatch",
        evidence=Evidence.RUN,
        note="SGLang refuses static and lp without an all-to-all backend: give a2a=deepep or algorithm=dynamic",
    ),
)

ENGINE_DISPATCH: Final[tuple[EngineDispatch, ...]] = (
    *_SGLANG,
    EngineDispatch(
        engine="vllm",
        version="0.32-0.33",
        rule=DispatchRule.VLLM,
        source="model_executor/layers/fused_moe/router/base_router.py: eplb_map_to_physical_and_record",
        evidence=Evidence.READ,
    ),
    EngineDispatch(
        engine="ascend",
        version="0.23.0",
        options={"tp": ("1",)},
        rule=DispatchRule.ASCEND,
        flags="--tensor-parallel-size 1",
        source="eplb/core/eplb_utils.py: generate_log2phy_map",
        evidence=Evidence.RUN,
        note="padding tokens of a data-parallel group sit on its last rank (vllm-ascend 9244); see --sources",
    ),
    EngineDispatch(
        engine="ascend",
        version="0.23.0",
        options={"tp": tuple(str(2**i) for i in range(1, 7))},
        rule=None,
        source="eplb/core/eplb_utils.py: generate_log2phy_map",
        evidence=Evidence.RUN,
        note="with tensor parallelism vllm-ascend rotates the replica by TP rank, DP rank and expert id, which no rule "
        "describes: give tp=1",
    ),
    EngineDispatch(
        engine="mindie",
        version="2.3",
        rule=DispatchRule.EVEN,
        source="none: the core is closed",
        evidence=Evidence.ASSUMED,
        note="MindIE's choice among replicas is not published: an even split is assumed",
    ),
    EngineDispatch(
        engine="trtllm",
        version="1.2",
        rule=DispatchRule.TRTLLM,
        source="cpp/tensorrt_llm/kernels/moeLoadBalance/moeLoadBalanceKernels.cu",
        evidence=Evidence.READ,
    ),
    EngineDispatch(
        engine="omni",
        version="not pinned",
        rule=DispatchRule.EVEN,
        source="none: the choice among replicas was not read",
        evidence=Evidence.ASSUMED,
        note="omni-infer's choice among replicas was not read: an even split is assumed",
    ),
    EngineDispatch(
        engine="lmdeploy",
        version="dlblas 0.0.7",
        rule=DispatchRule.EVEN,
        source="dlblas/layers/moe/eplb.py: topk_ids_logical_to_physical",
        evidence=Evidence.RUN,
        note="LMDeploy plans by itself from a file of counts and loads no placement",
    ),
    EngineDispatch(
        engine="deepseek",
        version="d52c72d",
        rule=DispatchRule.EVEN,
        source="eplb.py: rebalance_experts",
        evidence=Evidence.ASSUMED,
        note="DeepSeek's EPLB is a function that divides the load of an expert evenly; it dispatches no token",
    ),
)

ENGINES: Final[tuple[str, ...]] = tuple(dict.fromkeys(row.engine for row in ENGINE_DISPATCH))
"""The engines of the table, in its order."""


@final
@dataclass(frozen=True)
class ChosenDispatch:
    """The rule that an engine takes with some options, and the flags that lead to it."""

    row: EngineDispatch
    rule: DispatchRule
    flags: str


def engine_dispatch(engine: str, options: Mapping[str, str] | None = None) -> ChosenDispatch:
    """Find the rule of an engine.

    Parameters
    ----------
    engine
        A name of `ENGINES`.
    options
        Values of the options that decide, such as ``{"a2a": "none"}``; what is not given takes the value of the first
        row that fits.

    Raises
    ------
    InputError
        For an unknown engine, option or value, with those there are; or if the engine refuses the options, or no rule
        describes them.
    """
    given = {} if options is None else dict(options)
    rows = [row for row in ENGINE_DISPATCH if row.engine == engine]
    if not rows:
        raise UnknownNameError("engine", engine, ENGINES)
    known = option_values(engine)
    for name, value in given.items():
        if name not in known:
            expected = ", ".join(known) if known else "none, its rule depends on no option"
            raise InputError(f"engine {engine}: unknown option {name!r}: expected {expected}")
        if value not in known[name]:
            raise InputError(f"engine {engine}: {name} = {value!r}: expected one of {', '.join(known[name])}")
    row = next((row for row in rows if row.allows(given)), None)
    asked = ", ".join(f"{name}={value}" for name, value in given.items())
    if row is None:
        raise InputError(f"engine {engine}, {asked}: no case of the dispatch table has these options together")
    if row.rule is None:
        raise InputError(f"engine {engine}, {asked}: {row.note}")
    values = {name: given.get(name, values[0]) for name, values in row.options.items()}
    return ChosenDispatch(row, row.rule, row.flags.format(**values))


def option_values(engine: str) -> dict[str, tuple[str, ...]]:
    """The options that decide an engine's rule, each with its values."""
    found: dict[str, dict[str, None]] = {}
    for row in ENGINE_DISPATCH:
        if row.engine == engine:
            for name, values in row.options.items():
                found.setdefault(name, {}).update(dict.fromkeys(values))
    return {name: tuple(values) for name, values in found.items()}
