"""Reads bare JSON lists of numbers: counts [layers][experts] as LMDeploy's ``*_experts_counts.json``, or expert ids.

`arrays` decides what the numbers are.
"""

from pathlib import Path

from eplb_traces.readers.arrays import reading_of_array
from eplb_traces.readers.dialect import Reading, ReadOptions
from eplb_traces.readers.json_fields import beginning, json_document, nested_array

SUFFIXES: tuple[str, ...] = (".json",)
RECOGNISED_BY = "lists of numbers in a list"
BECOMES = "load (counts) or trace (expert ids with num_experts, router logits with top_k)"
REFUSES = "ragged lists; what .npy refuses"


def recognises(path: Path) -> bool:
    """Take two opening brackets followed by a number, or three."""
    head = "".join(beginning(path)[:200].split())
    return head.startswith("[[") and head.lstrip("[")[:1] in set("-0123456789")


def read(path: Path, options: ReadOptions) -> Reading:
    """Read the lists as an array."""
    return reading_of_array(nested_array(json_document(path), "$"), options)
