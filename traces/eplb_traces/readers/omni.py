"""Reads omni-infer's activation dumps: a folder of activation_counts_recordstep_{step}_rank_{rank}.txt.

``enable_dump`` and ``dump_dir`` in omni_placement_config make every rank write them (omni-infer, omni_placement
cluster_activation.cpp): one line a MoE layer, one tab-separated count a local slot, tokens since the last dump. They do
not say which expert a slot holds: they are read only where every expert has one slot, in order, as without a pattern.
A step is a window; steps that not every rank has, at the end of a run, are left out.
"""

import logging
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eplb_traces.errors import InputError, naming_place
from eplb_traces.expert_load import ExpertLoad
from eplb_traces.readers.dialect import Reading, ReadOptions
from eplb_traces.readers.slot_counts import matrix_of_text, not_empty

SUFFIXES: tuple[str, ...] = ()
RECOGNISED_BY = "a folder with activation_counts_recordstep_*_rank_*.txt"
BECOMES = "load, one window a step"
REFUSES = "more slots than experts, unless --recorded-under gives the pattern in force"
_FILE = re.compile(r"activation_counts_recordstep_(\d+)_rank_(\d+)\.txt")

_logger = logging.getLogger("eplb")


def recognises(path: Path) -> bool:
    """Take a folder with a dump in it."""
    return path.is_dir() and bool(_files(path))


def read(path: Path, options: ReadOptions) -> Reading:
    """Put the ranks of each step side by side, one window a step.

    Raises
    ------
    InputError
        Also if there are more slots than `options.num_experts`: their experts are not known.
    """
    files = _files(path)
    if not files:
        raise InputError("the folder has no activation_counts_recordstep_*_rank_*.txt")
    num_ranks = max(rank for _, rank in files) + 1
    whole = sorted(step for step in {step for step, _ in files} if all((step, r) in files for r in range(num_ranks)))
    if not whole:
        raise InputError(f"no step has the files of all ranks 0 to {num_ranks - 1}")
    num_cut = len({step for step, _ in files}) - len(whole)
    if num_cut:
        _logger.warning("%s: %d steps lack the file of a rank: left out", path.name, num_cut)
    tokens = not_empty(ExpertLoad(np.stack([_step(path, files, step, num_ranks) for step in whole]))).tokens
    if options.num_experts not in (None, tokens.shape[2]):
        raise InputError(
            f"the ranks have {tokens.shape[2]} slots and the model {options.num_experts} experts: which slot holds "
            "which expert is not in these files; record without redundant experts"
        )
    load = ExpertLoad(tokens, labels=[f"step {step}" for step in whole])
    return Reading(content=load, form="omni-infer activation dump, ranks side by side")


def _files(folder: Path) -> dict[tuple[int, int], Path]:
    """Return {(step, rank): file}."""
    matches = [(_FILE.fullmatch(file.name), file) for file in folder.iterdir()]
    return {(int(match[1]), int(match[2])): file for match, file in matches if match}


def _step(folder: Path, files: dict[tuple[int, int], Path], step: int, num_ranks: int) -> NDArray[np.float64]:
    """Return [L, P] of a step."""
    parts: list[NDArray[np.float64]] = []
    for rank in range(num_ranks):
        file = files[step, rank]
        with naming_place(file.name):
            part = matrix_of_text(file, None)
            if parts and part.shape != parts[0].shape:
                raise InputError(f"has {part.shape[0]} layers x {part.shape[1]} slots: expected {parts[0].shape}")
        parts.append(part)
    return np.concatenate(parts, axis=1)
