"""The public names: what importing a package loads, and that each name is the object of the module that defines it."""

import ast
import importlib
import pickle
import pydoc
import subprocess
import sys
from pathlib import Path

import pytest

import eplb
import eplb_traces

PACKAGES = (eplb, eplb_traces)
FIRST_LOADED = {
    "eplb": {"eplb", "eplb_traces", "eplb_traces.lazy_names"},
    "eplb_traces": {"eplb_traces", "eplb_traces.lazy_names"},
}
MODULES = {"datasets"}  # public modules, which no function shadows
every_package = pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)


def fresh(code: str) -> str:
    """What a new interpreter prints."""
    script = f"import sys; sys.path[:0] = {[path for path in sys.path if path]!r}\n{code}"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return result.stdout


def imports_for_type_checkers(package) -> dict[str, str]:
    """Name -> module, from the imports under `if TYPE_CHECKING`."""
    tree = ast.parse(Path(package.__file__).read_text())
    (guarded,) = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    return {alias.name: node.module for node in guarded.body for alias in node.names}


@every_package
def test_importing_a_package_loads_a_handful_of_modules(package):
    name = package.__name__
    code = f"before = set(sys.modules); import {name}; print(*sorted(set(sys.modules) - before))"
    code = f"import importlib, numpy; {code}"
    assert set(fresh(code).split()) == FIRST_LOADED[name]


@every_package
def test_each_name_is_the_object_of_its_home(package):
    assert set(package.__all__) - MODULES == set(package._HOME_OF) - {"__version__"}
    for name, home in package._HOME_OF.items():
        value = getattr(package, name)
        assert value is getattr(importlib.import_module(home), name)
        if callable(value):
            assert value.__module__ == home


@every_package
def test_type_checkers_read_the_same_table(package):
    assert imports_for_type_checkers(package) == package._HOME_OF


@every_package
def test_no_module_has_a_public_name(package):
    folder = Path(package.__file__).parent
    assert {path.stem for path in folder.iterdir()} & set(package.__all__) <= MODULES


def test_names_are_listed_before_any_is_loaded():
    # Counted from here on: where the interpreter is measured, coverage has loaded its own modules.
    code = "n = len(sys.modules); import eplb; print(sorted(eplb.__all__) == dir(eplb), len(sys.modules) - n < 100)"
    assert fresh(code) == "True True\n"


def test_plan_is_the_function_whatever_was_imported_first():
    code = (
        "import eplb.core.problem, eplb.planning.planner, eplb.planning.rebalance, eplb.evaluation.metrics\n"
        "import eplb\n"
        "from eplb import compare, evaluate, plan, rebalance\n"
        "print(*(type(one).__name__ for one in (eplb.plan, eplb.rebalance, plan, compare, evaluate, rebalance)))"
    )
    assert fresh(code).split() == ["function"] * 6


def test_modules_are_reached_through_the_package():
    code = (
        "import eplb\n"
        "from eplb import errors\n"
        "print(eplb.formats.FORMATS.__class__.__name__, eplb.online.__name__, eplb.core.problem.__name__)"
    )
    assert fresh(code).split() == ["dict", "eplb.online", "eplb.core.problem"]


def test_the_shipped_traces_are_reached_by_their_module():
    assert fresh("import eplb; print(eplb.datasets.moe_435m_windows())") == (
        "ExpertLoad(150 windows x 8 layers x 256 experts)\n"
    )


def test_a_star_import_brings_the_public_names():
    assert fresh("from eplb import *; print(plan.__name__, Topology.__name__)") == "plan Topology\n"


@every_package
def test_an_unknown_name_is_refused_by_name(package):
    with pytest.raises(AttributeError, match=f"module '{package.__name__}' has no attribute 'plann'"):
        package.plann  # noqa: B018
    with pytest.raises(ImportError, match="plann"):
        exec(f"from {package.__name__} import plann")


def test_what_is_reached_lazily_can_be_pickled():
    assert pickle.loads(pickle.dumps(eplb.plan)) is eplb.plan
    topology = eplb.Topology(1, 2, 3)
    assert pickle.loads(pickle.dumps(topology)) == topology


def test_help_shows_the_public_names():
    text = pydoc.plain(pydoc.render_doc(eplb))
    assert [name for name in eplb.__all__ if name not in text] == []
    assert f"VERSION\n    {eplb.__version__}" in text
