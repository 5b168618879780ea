"""Statistics of synthetic workloads, with the source of each number.

The numbers were measured on published loads of DeepSeek-V3 (SGLang team, sgl-project/sglang#6017; GPQA and AIME25
recordings of johanna-rock/moe-balance), DeepSeek-V2-Lite (deepseek-ai/ESFT), gpt-oss-20b and OLMoE (allenai).
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import final

from eplb_traces.model_shape import ModelShape


class Phase(StrEnum):
    """Whether a step contains whole sequences or one token of each running request."""

    PREFILL = "prefill"
    DECODE = "decode"


class Law(StrEnum):
    """Distribution of the rates of a layer's experts."""

    LOGNORMAL = "lognormal"
    ZIPF = "zipf"
    UNIFORM = "uniform"


@final
@dataclass(frozen=True, kw_only=True)
class Workload:
    """The statistics of one stationary workload.

    Parameters
    ----------
    name
        Part of the seed of this workload.
    domain
        Workloads of one domain have mostly the same experts with high rates; different domains share little.
    phase
        Workloads of one phase share more than those of different phases.
    sigma
        Standard deviation of ln(rate) inside an expert group (lognormal), or the exponent s (Zipf).
    cold_side
        Factor on deviations below the mean; above 1 gives a tail of rarely used experts.
    outlier
        Extra deviation of the experts with the highest rates beyond lognormal; 0: none.
    layer_spread
        Standard deviation of ln(sigma) over layers.
    group_sigma
        Standard deviation of ln(rate) of expert groups; 0: no group effect.
    index_slope
        Slope by which ln(rate) decreases with the expert's index: ``-slope * ln(x + 0.06)`` for x in (0, 1).
    concentration
        Dirichlet concentration of a sequence around the workload's rates.
    tokens_per_sequence
        Tokens of a sequence, which share its rates.
    """

    name: str
    domain: str = "general"
    phase: Phase = Phase.PREFILL
    law: Law = Law.LOGNORMAL
    sigma: float
    cold_side: float = 1.0
    outlier: float = 0.0
    layer_spread: float = 0.0
    group_sigma: float = 0.0
    index_slope: float = 0.0
    concentration: float = 145.0
    tokens_per_sequence: int = 512


@final
@dataclass(frozen=True, kw_only=True)
class Preset:
    """A model and its workloads, which follow each other in equal parts of the time."""

    shape: ModelShape
    workloads: tuple[Workload, ...]
    summary: str


_V3 = ModelShape(58, 256, 8, 8, 4, moe_layer_ids=tuple(range(3, 61)), num_hidden_layers=61)
_V2_LITE = ModelShape(26, 64, 6, moe_layer_ids=tuple(range(1, 27)), num_hidden_layers=27)
_GPT_OSS = ModelShape(24, 32, 4)

_V3_PREFILL = Workload(name="v3-prefill", sigma=0.52, outlier=0.5, layer_spread=0.15, group_sigma=0.22, index_slope=0.4)
_V3_LONG_PREFILL = Workload(
    name="v3-long-prefill",
    sigma=0.64,
    outlier=0.5,
    layer_spread=0.1,
    group_sigma=0.3,
    index_slope=0.46,
    tokens_per_sequence=4096,
)
_V3_DECODE = Workload(
    name="v3-decode",
    phase=Phase.DECODE,
    sigma=0.46,
    outlier=0.8,
    layer_spread=0.1,
    group_sigma=0.26,
    index_slope=0.52,
    tokens_per_sequence=1000,
)
_V3_REASONING = Workload(
    name="v3-reasoning",
    domain="reasoning",
    phase=Phase.DECODE,
    sigma=0.5,
    outlier=0.9,
    layer_spread=0.15,
    group_sigma=0.22,
    index_slope=0.34,
    tokens_per_sequence=8000,
)
_V2_LITE_POOLED = Workload(name="v2-lite", sigma=0.51, tokens_per_sequence=156)
_GPT_OSS_DECODE = Workload(
    name="gpt-oss", phase=Phase.DECODE, sigma=0.5, cold_side=3.0, concentration=40.0, tokens_per_sequence=306
)

PRESETS: dict[str, Preset] = {
    "v3-prefill": Preset(shape=_V3, workloads=(_V3_PREFILL,), summary="DeepSeek-V3, prompts of 1,000 tokens"),
    "v3-long-prefill": Preset(shape=_V3, workloads=(_V3_LONG_PREFILL,), summary="DeepSeek-V3, prompts of 4,096 tokens"),
    "v3-decode": Preset(shape=_V3, workloads=(_V3_DECODE,), summary="DeepSeek-V3, answers of 1,000 tokens"),
    "v3-reasoning": Preset(
        shape=_V3, workloads=(_V3_REASONING,), summary="DeepSeek-V3, another domain: long reasoning"
    ),
    "v3-switching": Preset(
        shape=_V3,
        workloads=(_V3_PREFILL, _V3_LONG_PREFILL, _V3_DECODE, _V3_REASONING),
        summary="DeepSeek-V3, the four workloads one after another",
    ),
    "v2-lite": Preset(shape=_V2_LITE, workloads=(_V2_LITE_POOLED,), summary="DeepSeek-V2-Lite, four tasks pooled"),
    "gpt-oss": Preset(shape=_GPT_OSS, workloads=(_GPT_OSS_DECODE,), summary="gpt-oss-20b, decoding, cold tail"),
    "lognormal": Preset(
        shape=_V3, workloads=(Workload(name="lognormal", sigma=0.65),), summary="lognormal rates, sigma 0.65, no groups"
    ),
    "zipf": Preset(
        shape=_V3, workloads=(Workload(name="zipf", law=Law.ZIPF, sigma=0.7),), summary="Zipf rates, s = 0.7, shuffled"
    ),
    "uniform": Preset(
        shape=_V3,
        workloads=(Workload(name="uniform", law=Law.UNIFORM, sigma=0.0),),
        summary="equal rates",
    ),
}
