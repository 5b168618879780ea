"""Predicts the step time of a Mixture-of-Experts layer from what each slot gets: seconds, not tokens. No torch.

A `Calibration` holds what was measured on a GPU (`eplb calibrate`), or a formula for a GPU that nobody has measured.
`predict` turns a placement and a batch into seconds of every rank.

The H200 table is too low for long calls. Measured rank by rank with DeepSeek-V3 loads, bf16, 25 makespans a cell,
|predicted / measured - 1| is

==================  ======================  =========================
tokens of a rank    decode_in500out1500     prefill_in2048
==================  ======================  =========================
4096                12.5 %, p95 15.1 %      12.6 %, p95 15.1 %
1024                5.2 %, p95 10.8 %       2.8 %, p95 9.2 %
128                 1.5 %, p95 4.1 %        1.7 %, p95 4.4 %
==================  ======================  =========================

(median first). At 4096 tokens the prediction is too low for every plan. Lower clocks under sustained
load would explain it; clocks were not recorded during these calls. Expert shapes outside the table have not been
checked on the GPU.
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
