"""Measures the grouped FFN and the links of the machine it runs on and fits a calibration."""

import logging
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch

from eplb.cost.calibration import Calibration, Provenance
from eplb.cost.ffn_fit import FfnMeasurement, Tile, fit_best
from eplb.cost.grouped_ffn import GroupedFfn
from eplb.cost.links import Link, Links
from eplb.cost.model_presets import ModelSizes
from eplb.errors import InputError
from eplb.runtime.calibration.clock_log import limits, logged_clocks
from eplb.runtime.calibration.grouped_ffn_call import KERNELS, make_calls
from eplb.runtime.calibration.link_probe import measured_link
from eplb.runtime.calibration.probes import GPU_GRID, SMALL_GRID, probes
from eplb.runtime.calibration.timers import Timer, make_timer
from eplb.runtime.verification.launch import Launch

_REPEATS = 3
_UNBOUNDED = float("inf")
_INTER_NODE = Link(45.0, 40e-6, "assumed: one 400 Gbit/s NIC a rank")
_INTRA_NODE = Link(370.0, 20e-6, "assumed: NVLink 4; calibrate saw fewer than two GPUs")
_UNSCALED = (Tile(_UNBOUNDED, 1, 1, 2**30),)

_logger = logging.getLogger("eplb")


@final
@dataclass(frozen=True)
class CalibrationRequest:
    """What to measure.

    Parameters
    ----------
    models
        Models whose expert shapes are measured.
    dtypes
        Types of weights.
    device
        "cuda" or "cpu"; the CPU measures a few rows only, to show that it works.
    """

    models: tuple[ModelSizes, ...]
    dtypes: tuple[str, ...] = ("bf16",)
    device: str = "cuda"

    def __post_init__(self) -> None:
        for name, given in (("models", self.models), ("types", self.dtypes)):
            if not given:
                raise InputError(f"{name}: expected at least one")


def calibrate(request: CalibrationRequest) -> Calibration:
    """Measure and fit.

    Raises
    ------
    InputError
        If the device is missing or does not multiply a type.
    """
    timer = make_timer(request.device)
    with logged_clocks(timer.device) as clocks:
        measured = {dtype: measure_models(dtype, request.models, timer) for dtype in request.dtypes}
    ffn = {dtype: fit_measured(dtype, points, timer.device) for dtype, points in measured.items()}
    return Calibration(
        gpu=_gpu_name(timer.device),
        provenance=Provenance.MEASURED,
        machine=f"{machine(timer.device)}; while measuring: {clocks.summary()}",
        ffn=ffn,
        links=_links(request.device),
        memory_bytes=_memory_bytes(timer.device),
    )


def measure_models(dtype: str, models: Sequence[ModelSizes], timer: Timer) -> list[FfnMeasurement]:
    """Time the grouped FFN of every expert shape of the models."""
    measured: list[FfnMeasurement] = []
    for hidden, intermediate in dict.fromkeys((model.hidden_size, model.intermediate_size) for model in models):
        measured += measure_ffn(dtype, hidden=hidden, intermediate=intermediate, timer=timer)
        _logger.info("%s, experts of %d x %d measured", dtype, hidden, intermediate)
    return measured


def measure_ffn(
    dtype: str, *, hidden: int, intermediate: int, timer: Timer, num_repeats: int = _REPEATS
) -> list[FfnMeasurement]:
    """Time the grouped FFN of one expert shape over many slots and rows; each point follows work of its own kind."""
    grid = GPU_GRID if timer.device.type == "cuda" else SMALL_GRID
    measured = []
    for num_slots, lists in probes(grid).items():
        calls = make_calls(dtype, num_slots=num_slots, hidden=hidden, intermediate=intermediate, device=timer.device)
        for slot_tokens in lists:
            (seconds,) = timer.seconds([calls.call(slot_tokens)], repeats=num_repeats).tolist()
            measured.append(FfnMeasurement(hidden, intermediate, slot_tokens, seconds))
    return measured


def fit_measured(dtype: str, measured: Sequence[FfnMeasurement], device: torch.device) -> GroupedFfn:
    """Fit the constants of the kernel of a type."""
    tiles, ffn = fit_best(KERNELS[dtype], measured, tile_candidates(dtype, device))
    if ffn.fit is not None:
        _logger.info("%s: tiles %s, median error %.1f %%", dtype, tiles, 100 * ffn.fit.median_error)
    return ffn


def tile_candidates(dtype: str, device: torch.device) -> dict[str, Sequence[Tile]]:
    """Tiles that the kernel may use; the fit picks among them. Rows and columns of a cluster of tiles count.

    `sm90` are those of torch's grouped products on Hopper (ATen/native/cuda/GroupMM.cu and ScaledGroupMM.cu), which
    change at a mean of 128 rows a slot.
    """
    if device.type != "cuda":
        return {"none": _UNSCALED}
    num_sms = torch.cuda.get_device_properties(device).multi_processor_count
    if dtype == "fp8":
        sm90 = (Tile(128, 128, 256, num_sms // 4), Tile(_UNBOUNDED, 512, 256, num_sms // 4))
    else:
        sm90 = (Tile(128, 128, 128, num_sms // 2), Tile(_UNBOUNDED, 256, 256, num_sms // 2))
    return {"sm90": sm90, "one": (Tile(_UNBOUNDED, 128, 128, num_sms // 2),), "none": _UNSCALED}


def machine(device: torch.device) -> str:
    """What the measurement runs on, in words."""
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    if device.type == "cpu":
        return f"{platform.machine()}, {os.cpu_count()} cores, {versions}"
    return f"{_gpu_name(device)}, {versions}, CUDA {torch.version.cuda}, {limits(device)}"


def _links(device: str) -> Links:
    if device == "cpu":
        return Links(measured_link(Launch(2, "gloo")), _INTER_NODE)
    if torch.cuda.device_count() < 2:
        _logger.info("one GPU: bandwidth and latency between GPUs are assumed, not measured")
        return Links(_INTRA_NODE, _INTER_NODE)
    return Links(measured_link(Launch(2, "nccl")), _INTER_NODE)


def _gpu_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU {platform.machine()}"


def _memory_bytes(device: torch.device) -> float:
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
