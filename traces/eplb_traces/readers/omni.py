"""Reads omni-infer's activation dumps: a folder of activation_counts_recordstep_{step}_rank_{rank}.txt.

``enable_dump`` and ``dump_dir`` in omni_placement_config make every rank write them (omni-infer, omni_placement
cluster_activation.cpp): one line a MoE layer, one tab-separated count a local slot, tokens since the last dump. They do
not contain which expert a slot holds: `recorded_under` does, or `num_experts` equal to the slots where there is no
redundancy and every expert has one slot, in order.
A step is a window; steps that not every rank has, at the end of a run, are left out.
"""

import logging
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eplb_traces.errors import InputError, naming_place
from eplb_traces.expert_load import ExpertLoad
from eplb_traces.readers.arrays import reading_of_rows
from eplb_traces.readers.dialect import Reading, ReadOptions
from eplb_traces.readers.slot_counts import logical_of_slots, matrix_of_text, not_empty

SUFFIXES: tuple[str, ...] = ()
RECOGNISED_BY = "a folder with activation_counts_recordstep_*_rank_*.txt"
BECOMES = "load, one window a step"
REFUSES = "slots whose experts neither --recorded-under nor an equal --num-experts tells"
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
        Also if neither `recorded_under` nor an equal `num_experts` tells the expert of each slot.
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
    counts = np.stack([_step(path, files, step, num_ranks) for step in whole])
    labels = [f"step {step}" for step in whole]
    not_empty(ExpertLoad(counts))
    form, used = "omni-infer activation dump, ranks side by side", frozenset[str]()
    if options.recorded_under is not None:
        counts, used = logical_of_slots(counts, options), frozenset({"recorded_under"})
        form += ", counts of slots made counts of experts"
    elif options.num_experts != counts.shape[2]:
        raise _redundant(counts.shape[2], options.num_experts)
    load = ExpertLoad(counts, labels=labels)
    notes = (f"{num_cut} steps lack the file of a rank: left out",) if num_cut else ()
    return reading_of_rows(Reading(content=load, form=form, notes=notes, used=used), options, None)


def _redundant(num_slots: int, num_experts: int | None) -> InputError:
    model = "num_experts is not given" if num_experts is None else f"the model {num_experts} experts"
    return InputError(
        f"the ranks have {num_slots} slots and {model}: which slot holds which expert is not in these files; give the "
        f"pattern in force as recorded_under (--recorded-under), or, without redundant experts, num_experts = "
        f"{num_slots} (--num-experts)"
    )


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
