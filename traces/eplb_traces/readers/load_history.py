"""Reads ADRS's and OpenEvolve's expert-load.json: ``{"load_history": [{"logical_expert_load": [layers][experts]}]}``.

An entry is a window. The published file has 223 MB: it is parsed entry by entry, by the decoder of the standard library
(a streaming parser yields number by number, which is slower), into one array that grows.
"""

import json
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eplb_traces.errors import InputError, naming_place
from eplb_traces.expert_load import ExpertLoad
from eplb_traces.readers.arrays import reading_of_rows
from eplb_traces.readers.dialect import Reading, ReadOptions
from eplb_traces.readers.json_fields import beginning, nested_array, parsed_json, unique_keys
from eplb_traces.readers.slot_counts import exact_counts

SUFFIXES: tuple[str, ...] = (".json",)
RECOGNISED_BY = "an object with the key load_history"
BECOMES = "load, one window an entry"
REFUSES = "entries without logical_expert_load; unlike numbers of layers or experts"
HISTORY = "load_history"
KEY = "logical_expert_load"
_CHUNK = 1 << 22
_BETWEEN = re.compile(r"[, \t\r\n]*")
_LIST = re.compile(rf'"{HISTORY}"\s*:\s*\[')


def recognises(path: Path) -> bool:
    """Take a JSON object with our key in its first 64 KiB."""
    head = beginning(path)
    return head.startswith("{") and f'"{HISTORY}"' in head


def read(path: Path, options: ReadOptions) -> Reading:
    """Read the windows in the order of the file."""
    windows = _windows(path)
    first = next(windows, None)
    if first is None:
        raise InputError(f"no entry in a list under {HISTORY!r}")
    tokens = np.fromiter(chain([first], windows), dtype=np.dtype((np.float64, first.shape)))
    tokens.setflags(write=False)  # `ExpertLoad` keeps such an array without a copy
    form = f"{HISTORY}[].{KEY} [layers, experts]"
    return reading_of_rows(Reading(content=ExpertLoad(tokens), form=form), options, None)


def _windows(path: Path) -> Iterator[NDArray[np.float64]]:
    """Yield the counts [layers, experts] of every entry, all of one shape."""
    expected: tuple[int, ...] | None = None
    for number, entry in enumerate(_entries(path)):
        with naming_place(f"$.{HISTORY}[{number}]"):
            if not isinstance(entry, dict) or KEY not in entry:
                keys = ", ".join(map(str, entry)) if isinstance(entry, dict) else type(entry).__name__
                raise InputError(f"has {keys or 'no key'}: expected an object with {KEY!r}")
            counts = exact_counts(nested_array(entry[KEY], KEY), KEY)
            if counts.ndim != 2 or expected not in (None, counts.shape):
                raise InputError(f"{KEY} has shape {counts.shape}: expected {expected or '[layers][experts]'}")
            expected = counts.shape
        yield counts


def _entries(path: Path) -> Iterator[object]:
    """Parse the list entry by entry: no more text is held than an entry needs."""
    decoder = json.JSONDecoder(object_pairs_hook=unique_keys)
    with path.open(encoding="utf-8-sig") as file:
        try:
            text = file.read(_CHUNK)
            found = _LIST.search(text)
            if found is None:
                raise InputError(f"no list under {HISTORY!r} in the first {_CHUNK} characters")
            before, at = text[: found.start()], found.end()
            while True:
                between = _BETWEEN.match(text, at)
                at = between.end() if between else at
                if text.startswith("]", at):
                    parsed_json(f'{before}"{HISTORY}": 0{text[at + 1 :]}{file.read()}')
                    return
                try:
                    entry, at = decoder.raw_decode(text, at)
                except InputError:
                    raise
                except (ValueError, RecursionError) as error:
                    text = text[at:]
                    more = file.read(max(_CHUNK, len(text)))
                    if not more:
                        raise InputError(f"not JSON: {error}") from error
                    text, at = text + more, 0
                    continue
                yield entry
        except UnicodeDecodeError as error:
            raise InputError(f"not JSON: {error}") from error
