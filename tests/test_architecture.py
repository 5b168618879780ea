"""The shape of the code: who may import whom, what `import eplb` costs, who prints, how long a file may be."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
ROOMS = {
    "eplb_traces": REPOSITORY / "traces" / "eplb_traces",
    "eplb": REPOSITORY / "eplb",
    "eplb_cli": REPOSITORY / "cli" / "eplb_cli",
}
MAY_IMPORT = {"eplb_traces": set(), "eplb": {"eplb_traces"}, "eplb_cli": {"eplb_traces", "eplb"}}
# Inside eplb: a folder imports from earlier lines and from itself; peers on one line do not import each other.
LEVELS = (
    ("errors", "version"),
    ("core", "datasets"),
    ("dispatch", "bounds", "formats"),
    ("arguments",),
    ("cost",),
    ("evaluation", "strategies", "runtime"),
    ("planning",),
    ("online", "engines", "report", "testing"),
    ("__init__", "__main__"),
)
HEAVY = {"torch", "ortools", "matplotlib", "pandas", "ray", "pyarrow", "transformers"}
MAY_LOAD_AT_IMPORT = {("eplb", "runtime"): {"torch"}, ("eplb", "report"): {"matplotlib", "pandas"}}
MOST_LINES = 400
SHARED_KERNELS = "eplb.core.kernel_helpers"
SHARED_BY_KERNELS = {"eplb.dispatch.replica_shares_kernel"}  # other kernels call its helper


def _python_files(room: str) -> list[Path]:
    return sorted(ROOMS[room].rglob("*.py"))


def _all_files() -> list[Path]:
    return [path for room in ROOMS for path in _python_files(room)]


def _name(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


@pytest.fixture(scope="module", autouse=True)
def _parsed_once() -> Iterator[None]:
    """The nodes of all files are kept until the last test of this module."""
    yield
    _nodes.cache_clear()


@cache
def _nodes(source: str) -> tuple[ast.AST, ...]:
    """All nodes of a source, the module first; each file is parsed once for all tests."""
    return tuple(ast.walk(ast.parse(source)))


def _unit(module: str) -> str:
    """The module or package right below `eplb` that a dotted name belongs to; `__init__` for eplb itself."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def _imported(node: ast.AST) -> list[str]:
    """Dotted names of what an import statement imports, `from eplb import formats` as eplb.formats."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module is not None:
        if node.module in ROOMS:
            return [_submodule(node.module, alias.name) for alias in node.names]
        return [node.module]
    return []


def _submodule(room: str, name: str) -> str:
    is_module = (ROOMS[room] / f"{name}.py").exists() or (ROOMS[room] / name).is_dir()
    return f"{room}.{name}" if is_module else room


def _imports(path: Path) -> list[str]:
    return [name for node in _nodes(path.read_text()) for name in _imported(node)]


def _module_level(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node that runs when the module is imported: no function bodies, no `if TYPE_CHECKING` blocks."""
    for node in ast.iter_child_nodes(tree):
        is_guard = isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not is_guard:
            yield node
            yield from _module_level(node)


@pytest.mark.parametrize("room", list(ROOMS))
def test_rooms_import_in_one_direction(room):
    for path in _python_files(room):
        if path.name == "__main__.py":  # `python -m eplb` is the command line
            continue
        for name in _imports(path):
            top = name.split(".")[0]
            assert top not in set(ROOMS) - MAY_IMPORT[room] - {room}, f"{_name(path)} imports {name}"


def test_every_file_of_eplb_has_a_level():
    known = {unit for level in LEVELS for unit in level}
    found = {path.relative_to(ROOMS["eplb"]).parts[0].removesuffix(".py") for path in _python_files("eplb")}
    assert found - known == set(), "a new file or folder: enter its level in LEVELS"


def test_eplb_imports_only_from_lower_levels():
    level_of = {unit: number for number, level in enumerate(LEVELS) for unit in level}
    for path in _python_files("eplb"):
        own = path.relative_to(ROOMS["eplb"]).parts[0].removesuffix(".py")
        for name in _imports(path):
            if name.split(".")[0] == "eplb" and _unit(name) != own:
                assert level_of[_unit(name)] < level_of[own], f"{_name(path)} imports {name}"


def _modules() -> dict[str, Path]:
    """{dotted name: file} of all three packages."""
    found = {}
    for room, folder in ROOMS.items():
        for path in _python_files(room):
            parts = [room, *path.relative_to(folder).with_suffix("").parts]
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def _import_graph(sources: dict[str, str]) -> dict[str, set[str]]:
    """{module: modules it imports}, anywhere in the file; a package is imported where no file of that name is."""
    graph: dict[str, set[str]] = {}
    for module, source in sources.items():
        imported = set()
        for node in _nodes(source):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module is not None:
                submodules = {f"{node.module}.{alias.name}" for alias in node.names} & sources.keys()
                imported |= submodules or {node.module}
        graph[module] = imported & (sources.keys() - {module})
    return graph


def _circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules each of which imports the next, the last one the first; empty if there are none."""
    done: set[str] = set()

    def walk(path: list[str]) -> list[str]:
        for name in sorted(graph[path[-1]] - done):
            found = path[path.index(name) :] if name in path else walk([*path, name])
            if found:
                return found
        done.add(path[-1])
        return []

    return next(filter(None, (walk([name]) for name in sorted(graph) if name not in done)), [])


def test_files_do_not_import_each_other_in_a_circle():
    circle = _circle(_import_graph({name: path.read_text() for name, path in _modules().items()}))
    assert not circle, f"{' -> '.join(circle)} -> {circle[0]}"


def test_the_check_for_circles_can_fail():
    sources = {"p": "from p.a import x", "p.a": "import os", "p.b": "def f():\n    from p import c"}
    assert _circle(_import_graph({**sources, "p.c": "import p.a"})) == []
    guarded = "if TYPE_CHECKING:\n    from p.b import f"
    assert _circle(_import_graph({**sources, "p.c": guarded})) == ["p.b", "p.c"]
    assert _circle({"a": {"b"}, "b": {"c", "d"}, "c": {"e"}, "d": set(), "e": {"c"}}) == ["c", "e"]


@pytest.mark.parametrize("room", list(ROOMS))
def test_heavy_packages_are_imported_inside_functions(room):
    for path in _python_files(room):
        folder = (room, path.relative_to(ROOMS[room]).parts[0])
        for node in _module_level(_nodes(path.read_text())[0]):
            for name in _imported(node):
                top = name.split(".")[0]
                assert top not in HEAVY - MAY_LOAD_AT_IMPORT.get(folder, set()), f"{_name(path)} imports {name}"


def test_the_check_for_heavy_imports_can_fail():
    source = (
        "import os\nclass A:\n    import torch.nn\ndef f():\n    import ray\nif TYPE_CHECKING:\n    import pandas\n"
    )
    found = {name for node in _module_level(ast.parse(source)) for name in _imported(node)}
    assert found == {"os", "torch.nn"}


def test_import_eplb_loads_nothing_heavy():
    code = f"import sys, eplb; print(sorted({HEAVY | {'numba', 'scipy', 'rich', 'typer'}!r} & set(sys.modules)))"
    script = f"import sys; sys.path[:0] = {[path for path in sys.path if path]!r}; {code}"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


def test_only_output_prints():
    for path in _all_files():
        if path == ROOMS["eplb_cli"] / "output.py":
            continue
        for node in _nodes(path.read_text()):
            text = ast.unparse(node) if isinstance(node, ast.Attribute | ast.Name) else ""
            assert text not in {"print", "sys.stdout", "sys.stderr"}, f"{_name(path)}: {text}"
            imports = {name for name in _imported(node) if name.split(".")[0] == "rich"}
            assert imports <= {"rich.cells"}, f"{_name(path)} imports {imports}"  # which measures texts


def _kernels_of_other_folders(module: str, source: str) -> list[str]:
    """Kernel files that a module imports from outside its own folder."""
    folder = module.rpartition(".")[0]
    names = [name for node in _nodes(source) for name in _imported(node)]
    kernels = [name for name in names if name.split(".")[-1].endswith("kernel") or name.split(".")[-1] == "kernels"]
    shared = SHARED_BY_KERNELS if module.endswith("kernel") else set()
    return [name for name in kernels if name.rpartition(".")[0] != folder and name not in shared]


def test_kernels_are_imported_only_inside_their_folder():
    for room, root in ROOMS.items():
        for path in _python_files(room):
            module = ".".join((room, *path.relative_to(root).with_suffix("").parts))
            assert _kernels_of_other_folders(module, path.read_text()) == [], _name(path)


def test_only_kernels_import_their_helpers():
    constants = {"LANES"}  # Python code pads windows to the kernels' lanes
    for path in _python_files("eplb"):
        for node in _nodes(path.read_text()):
            if isinstance(node, ast.ImportFrom) and node.module == SHARED_KERNELS:
                names = {alias.name for alias in node.names}
                assert path.stem.endswith("kernel") or names <= constants, f"{_name(path)} imports {names}"


def _quick_argsorts(source: str) -> list[int]:
    """Lines that sort indices by numba's default method, quicksort.

    Its machine code has the same symbol as that of `np.sort`. When two processes have compiled and cached one each, a
    third one links both files to the same code and writes out of bounds.
    """
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    sorts = [node for node in calls if isinstance(node.func, ast.Attribute) and node.func.attr == "argsort"]
    return [node.lineno for node in sorts if "kind='mergesort'" not in ast.unparse(node)]


def test_kernels_sort_indices_by_mergesort():
    for path in _all_files():
        if "kernel" in path.stem:
            assert _quick_argsorts(path.read_text()) == [], _name(path)
    assert _quick_argsorts("a = np.argsort(x, kind='mergesort')\nb = np.argsort(x)\nc = x.argsort()\n") == [2, 3]


def test_the_check_for_kernels_can_fail():
    source = "from eplb.core.migration_kernel import schedule_layers\nfrom eplb.core.kernel_helpers import holds\n"
    assert _kernels_of_other_folders("eplb.core.migration", source) == []
    assert _kernels_of_other_folders("eplb.engines.policy", source) == ["eplb.core.migration_kernel"]
    source = "from eplb.dispatch.replica_shares_kernel import replica_shares\n"
    assert _kernels_of_other_folders("eplb.strategies.under_rule.descent_kernel", source) == []
    assert _kernels_of_other_folders("eplb.strategies.certify", source) == ["eplb.dispatch.replica_shares_kernel"]


UNPICKLING = {"torch.load", "pickle.load", "pickle.loads", "pickle.Unpickler"}
UNPICKLES_ITS_OWN = {"eplb/runtime/verification/launch.py"}  # answers of processes that it started


def _unpickling(source: str) -> set[str]:
    return {ast.unparse(node) for node in _nodes(source) if isinstance(node, ast.Attribute)} & UNPICKLING


def test_no_file_of_a_user_is_unpickled():
    found = {_name(path) for path in _all_files() if _unpickling(path.read_text())}
    assert found == UNPICKLES_ITS_OWN


def test_the_check_for_unpickling_can_fail():
    assert _unpickling("import torch\ndef f(path):\n    return torch.load(path, weights_only=True)\n") == {"torch.load"}
    assert _unpickling("class Reader(pickle.Unpickler):\n    pass\n") == {"pickle.Unpickler"}


def test_files_are_short_enough_to_read():
    for path in [*_all_files(), *sorted((REPOSITORY / "tests").rglob("*.py"))]:
        num_lines = len(path.read_text().splitlines())
        assert num_lines <= MOST_LINES, f"{_name(path)}: {num_lines} lines"
