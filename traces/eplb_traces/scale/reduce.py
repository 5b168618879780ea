"""Counts the load of a trace that lies in many files: each file by itself, then the sum of all."""

import glob
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import final

from eplb_traces.combine import Combine, common_shape
from eplb_traces.errors import InputError
from eplb_traces.expert_load import ExpertLoad
from eplb_traces.files.named_once import check_named_once
from eplb_traces.files.remote import matching, url_of
from eplb_traces.model_shape import ModelShape
from eplb_traces.routing_trace import load_of_windows
from eplb_traces.scale.checkpoint import Checkpoint
from eplb_traces.scale.executors import Executor
from eplb_traces.scale.shard_counts import Shard, ShardCounts, StepRange, added, count_shard, step_range


@final
@dataclass(frozen=True, eq=False)
class Reduction:
    """The load of all files."""

    load: ExpertLoad
    num_tokens: int
    num_resumed: int
    """Files whose counts were taken from the checkpoint."""


def files_of(patterns: Sequence[str]) -> list[str]:
    """The files that paths and glob patterns name, those of each pattern in order of their names.

    Raises
    ------
    InputError
        If a pattern names no file, or a file is named twice.
    """
    found: list[str] = []
    for pattern in patterns:
        of_pattern = _files_of_pattern(pattern)
        if not of_pattern:
            raise InputError(f"{pattern}: no such file")
        found += of_pattern
    check_named_once(found)
    return found


def _files_of_pattern(pattern: str) -> list[str]:
    url = url_of(pattern)
    if url is not None:
        return matching(url) if glob.has_magic(url) else [url]
    return [pattern] if Path(pattern).exists() else sorted(glob.glob(pattern, recursive=True))


def reduce_trace(
    shards: Sequence[Shard],
    how: Combine | None,
    executor: Executor,
    checkpoint: Checkpoint,
    on_done: Callable[[], None] = lambda: None,
) -> Reduction:
    """Count the load of all files, the same to the last bit on any executor and in any order of the files' ends.

    Finished files are kept in the checkpoint until the caller removes it.

    Parameters
    ----------
    shards
        At least one, all with the same window and options.
    how
        What the files are to each other where windows are counted: `TIME`, the steps of a file follow those of the
        file before, or `SUM`, parts of the same steps. None: there is one file, or one window.
    executor
        Where the files are counted.
    checkpoint
        Where finished files are kept.
    on_done
        Called after each file that was counted.

    Raises
    ------
    InputError
        If a file cannot be read, is of another model, or `how` has no meaning for tokens or is missing.
    """
    placed = _placed(shards, how, executor)
    saved = [checkpoint.saved(shard) for shard in placed]
    shapes: dict[int, ModelShape] = {i: counts.shape for i, counts in enumerate(saved) if counts is not None}
    missing = [i for i, counts in enumerate(saved) if counts is None]
    names = [shard.path for shard in placed]

    def keep(number: int, counts: ShardCounts) -> None:
        at = missing[number]
        if shapes:
            first = min(shapes)
            common_shape([shapes[first], counts.shape], [names[first], names[at]])
        checkpoint.save(placed[at], counts)
        shapes[at] = counts.shape
        on_done()

    parts = [counts for counts in saved if counts is not None]
    if missing:
        count = partial(count_shard, stopped=executor.stopped)
        parts.append(executor.map_reduce(count, [placed[i] for i in missing], added, keep))
    total = parts[0]
    for part in parts[1:]:
        total = added(total, part)
    shape = common_shape([shapes[i] for i in sorted(shapes)], names)
    load = load_of_windows(total.windows, placed[0].window, shape)
    return Reduction(load, total.num_tokens, len(placed) - len(missing))


def _placed(shards: Sequence[Shard], how: Combine | None, executor: Executor) -> list[Shard]:
    """The shards with the first step of the whole trace, and how far the steps of each are moved."""
    window = shards[0].window
    if window is not None and window < 1:
        raise InputError(f"window = {window}: expected >= 1 step")
    if how not in (None, Combine.TIME, Combine.SUM):
        raise InputError(f"combine = {how}: expected time or sum for token-level traces")
    if window is None:
        return list(shards)
    if how is None and len(shards) > 1:
        raise InputError(
            f"windows of {len(shards)} files: give combine (--combine) = time, if the steps of a file follow those of "
            "the file before, or sum, if all files are parts of the same steps"
        )
    ranges = executor.map(step_range, shards, lambda number, found: None)
    offsets = [0] * len(shards)
    if how == Combine.TIME:
        for i, before in enumerate(ranges[:-1]):
            offsets[i + 1] = offsets[i] + before.last + 1
    return _with_first_step(shards, ranges, offsets)


def _with_first_step(shards: Sequence[Shard], ranges: Sequence[StepRange], offsets: Sequence[int]) -> list[Shard]:
    firsts = [of.first + offset for of, offset in zip(ranges, offsets, strict=True) if of.first is not None]
    if not firsts:
        raise InputError("the trace has no tokens")
    return [
        replace(shard, first_step=min(firsts), step_offset=offset)
        for shard, offset in zip(shards, offsets, strict=True)
    ]
