"""Finds the calibration of a GPU by its name, or reads one from a file."""

from importlib.resources import as_file, files
from pathlib import Path

from eplb.cost.calibration import Calibration
from eplb.cost.calibration_file import read_calibration
from eplb.cost.gpu_datasheets import GPU_DATASHEETS
from eplb.cost.gpu_formula import formula_calibration
from eplb.errors import UnknownNameError


def named_calibration(name: str) -> Calibration:
    """The calibration in a file, or of a GPU by its short name: measured where a table is shipped, else by formula.

    Raises
    ------
    UnknownNameError
        For a name that is neither a file nor a known GPU.
    """
    if name.endswith(".json") or Path(name).is_file():
        return read_calibration(Path(name))
    short = name.lower()
    table = files("eplb.cost") / "tables" / f"{short}.json"
    if short in GPU_DATASHEETS and table.is_file():
        with as_file(table) as path:
            return read_calibration(path)
    if short in GPU_DATASHEETS:
        return formula_calibration(short)
    raise UnknownNameError("GPU (or calibration file)", name, GPU_DATASHEETS)
