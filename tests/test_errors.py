"""Every error of the project survives pickling, as `multiprocessing` needs: an error that does not hangs its pool."""

import ast
import importlib
import multiprocessing
import pickle
from pathlib import Path

import pytest

import eplb
from eplb.errors import EplbError, MissingExtraError, UnknownNameError
from eplb_traces.model_shape import ShapeConflictError

REPOSITORY = Path(__file__).resolve().parent.parent
SOURCES = {"eplb_traces": REPOSITORY / "traces", "eplb": REPOSITORY, "eplb_cli": REPOSITORY / "cli"}
# What a class with parameters of its own is made with; all others take a message.
ARGUMENTS = {
    UnknownNameError: ("strategy", "gredy", ["greedy", "ilp"]),
    MissingExtraError: ("drawing", "report"),
    ShapeConflictError: ("layers", "3", "4"),
}


def error_classes():
    """(module, class) of every class of the three packages that is named like an error."""
    for package, root in SOURCES.items():
        for path in sorted((root / package).rglob("*.py")):
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.ClassDef) and node.name.endswith("Error"):
                    yield ".".join(path.relative_to(root).with_suffix("").parts), node.name


def test_the_classes_are_found():
    assert {"UnknownNameError", "MissingExtraError", "ExchangeOverflowError"} <= {name for _, name in error_classes()}


@pytest.mark.parametrize(("module", "name"), list(error_classes()))
def test_an_error_comes_back_from_pickle_as_it_was(module, name):
    kind = getattr(importlib.import_module(module), name)
    assert issubclass(kind, EplbError)
    has_parameters = "__init__" in vars(kind)
    assert has_parameters == (kind in ARGUMENTS)
    error = kind(*ARGUMENTS.get(kind, ("a message",)))
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is kind
    assert str(back) == str(error)
    assert vars(back) == vars(error)


def test_a_mistyped_strategy_in_a_pool_is_the_error_of_the_caller():
    arguments = eplb.ExpertLoad([[1.0, 2.0]]), eplb.Topology(1, 2, 1), "gredy"
    with multiprocessing.get_context("spawn").Pool(1) as pool, pytest.raises(UnknownNameError, match="'gredy'"):
        pool.apply_async(eplb.plan, arguments).get(timeout=60)
