"""Predicts the step time of a Mixture-of-Experts layer from what each slot gets: seconds, not tokens. No torch.

A `Calibration` holds what was measured on a GPU (`eplb calibrate`), or a formula for a GPU that nobody has measured.
`predict` turns a placement and a batch into seconds of every rank.
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
