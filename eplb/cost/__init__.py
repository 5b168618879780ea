"""Predicts the step time of a Mixture-of-Experts layer from what each slot gets: seconds, not tokens. No torch.

A `Calibration` holds what was measured on a GPU (`eplb calibrate`), or a formula for a GPU that nobody has measured.
`predict` turns a placement and a batch into seconds of every rank.

Measured on an H200, rank by rank, against the shipped table; |predicted / measured - 1| of 255 makespans, each the
slowest rank of a plan, a layer and a phase (`tests/benchmarks/bench_cost.py`):

===========================  ======  ========  =======
makespans                    points  median    p95
===========================  ======  ========  =======
all                          255     2.7 %     10.0 %
expert shapes in the table   135     3.7 %     11.1 %
expert shapes not in it      120     2.0 %     5.7 %
===========================  ======  ========  =======

Another 2340 makespans of a replay (DeepSeek-V3 in fp8, 2048 tokens a rank) were 1.9 % off in the median, 4.2 % at p95
(`tests/benchmarks/bench_replay.py`).

The largest error is DeepSeek-V3 in bf16 at 4096 tokens a rank: the prediction is 9.8 % too low. A GPU that multiplies
without a break is at its power limit (691 W in the median of that run, 1695 MHz of 1980); the table was measured with
20 ms of work before each point (478 W, 1980 MHz). Calls are launched one by one; a table of the same GPU that was
measured through CUDA graphs had 10 us less fixed time a call.
"""

from eplb.cost.batch import Batch, Phase, slot_counts
from eplb.cost.calibration import Calibration, Provenance
from eplb.cost.calibration_file import read_calibration, write_calibration
from eplb.cost.grouped_ffn import GroupedFfn, RankFfn, TileRegime
from eplb.cost.known_gpus import named_calibration
from eplb.cost.links import Link, Links
from eplb.cost.model_presets import ModelSizes, model_presets, model_sizes, read_model_config
from eplb.cost.step_time import LayerTimes, predict

__all__ = [
    "Batch",
    "Calibration",
    "GroupedFfn",
    "LayerTimes",
    "Link",
    "Links",
    "ModelSizes",
    "Phase",
    "Provenance",
    "RankFfn",
    "TileRegime",
    "model_presets",
    "model_sizes",
    "named_calibration",
    "predict",
    "read_calibration",
    "read_model_config",
    "slot_counts",
    "write_calibration",
]
