"""Changes one operator or number of a module at a time and lists the changes that no test notices.

    python tests/tools/mutate.py [MODULE ...] [--most N]

Each mutant is a process of its own, forked after the heavy imports: it loads the changed module and runs the tests that
belong to it. A mutant is killed when a test fails or the time is over. What survives is printed with file and line.
A kernel runs as plain Python, so that its change takes effect without a compilation.
"""

import argparse
import ast
import importlib.util
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]
_BOUNDS = ["tests/bounds/test_lower_bounds.py", "tests/bounds/test_lower_bounds_extended.py"]
_NO_STRATEGY = ["-k", "not strategy and not deepseek"]
_ORACLE = ["tests/bounds/test_lower_bounds_extended.py", "tests/bounds/test_bounds_by_oracle.py"]
TESTS = {
    "eplb.evaluation.metrics": ["tests/evaluation/test_metrics.py"],
    "eplb.evaluation.failures": ["tests/planning/test_replan_without_ranks.py", "-k", "loss or lost or report"],
    "eplb.evaluation.pair_locality": ["tests/evaluation/test_pair_locality.py"],
    "eplb.evaluation.link_traffic": ["tests/evaluation/test_link_traffic.py"],
    "eplb.evaluation.step_cost": ["tests/evaluation/test_step_cost.py"],
    "eplb.evaluation.traffic": ["tests/evaluation/test_traffic.py"],
    "eplb.evaluation.traffic_kernel": ["tests/evaluation/test_traffic.py"],
    "eplb.bounds.lower_bounds": [*_BOUNDS, *_NO_STRATEGY],
    "eplb.bounds.replication_kernel": ["tests/bounds/test_replication_kernel.py", *_BOUNDS, *_NO_STRATEGY],
    "eplb.bounds.co_residency_kernel": _ORACLE,
    "eplb.bounds.pair_mixture_kernel": _ORACLE,
    "eplb.formats.engine_check": ["tests/formats/test_engine_check.py"],
    "eplb.runtime.verification.checks": ["tests/runtime/verification/test_checks.py"],
    "eplb.runtime.verification.tensor_parallel": [
        "tests/runtime/verification/test_tensor_parallel.py",
        "-k",
        "not give_the_result and not swapped",
    ],
    "eplb.core.placement": ["tests/core/test_placement.py"],
    "eplb.core.constraints": ["tests/strategies/ilp/test_constraints.py"],
}
"""The pytest arguments that select the tests of each module: few and fast ones."""
SECONDS = 120
SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.And: ast.Or, ast.Or: ast.And, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.USub: ast.UAdd,
}  # fmt: skip
NAMES = {"max": "min", "min": "max", "any": "all", "all": "any", "maximum": "minimum", "minimum": "maximum"}


class Mutator(ast.NodeTransformer):
    """Counts the places that can be changed, and changes the one with the number `target`."""

    def __init__(self, target: int = -1) -> None:
        self.target, self.count, self.done = target, 0, ""

    def _is_next(self) -> bool:
        self.count += 1
        return self.count - 1 == self.target

    def visit(self, node: ast.AST) -> ast.AST:
        if isinstance(node, ast.AnnAssign):  # annotations are no code
            if node.value is not None:
                node.value = self.visit(node.value)  # type: ignore[assignment]
            return node
        if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            return node
        if isinstance(node, ast.FunctionDef | ast.ClassDef):  # decorators and default values declare
            node.body = [self.visit(one) for one in node.body]  # type: ignore[misc]
            return node
        self.generic_visit(node)
        return self._changed(node)

    def _changed(self, node: ast.AST) -> ast.AST:
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            if self._is_next():
                new = (not node.value) if isinstance(node.value, bool) else node.value + 1
                self.done = f"{line}: {node.value} -> {new}"
                return ast.copy_location(ast.Constant(new), node)
        elif isinstance(node, ast.Compare | ast.BinOp | ast.BoolOp | ast.UnaryOp):
            old = node.ops[0] if isinstance(node, ast.Compare) else node.op
            if type(old) in SWAPS and self._is_next():
                new_op = SWAPS[type(old)]()
                self.done = f"{line}: {type(old).__name__} -> {type(new_op).__name__}"
                if isinstance(node, ast.Compare):
                    node.ops[0] = new_op  # type: ignore[call-overload]
                else:
                    node.op = new_op  # type: ignore[assignment]
        elif isinstance(node, ast.Attribute) and node.attr in NAMES and self._is_next():
            self.done = f"{line}: .{node.attr} -> .{NAMES[node.attr]}"
            node.attr = NAMES[node.attr]
        elif isinstance(node, ast.Name) and node.id in NAMES and self._is_next():
            self.done = f"{line}: {node.id} -> {NAMES[node.id]}"
            node.id = NAMES[node.id]
        return node


def mutated(source: str, target: int) -> tuple[ast.Module, str, int]:
    """The module with the change `target`, what was changed, and the number of places."""
    mutator = Mutator(target)
    tree = ast.fix_missing_locations(mutator.visit(ast.parse(source)))
    assert isinstance(tree, ast.Module)
    return tree, mutator.done, mutator.count


class Loader:
    """Imports one module from a changed tree; everything else is imported as usual."""

    def __init__(self, name: str, path: Path, tree: ast.Module) -> None:
        self.name, self.path, self.tree = name, path, tree

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name != self.name:
            return None
        return importlib.util.spec_from_file_location(name, self.path, loader=self)  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        from eplb_traces import jit

        kept = jit.njit, jit.helper
        jit.njit, jit.helper = (lambda *signatures: plain), plain  # type: ignore[assignment]
        try:
            exec(compile(self.tree, str(self.path), "exec"), module.__dict__)
        finally:
            jit.njit, jit.helper = kept


def plain(function: Callable[..., object]) -> Callable[..., object]:
    """A kernel that is not compiled."""
    vars(function)["py_func"] = function
    return function


def survives(name: str, path: Path, tree: ast.Module, tests: list[str]) -> bool:
    """Whether all tests pass with the changed module."""
    child = os.fork()
    if child == 0:
        os.setsid()
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        sys.meta_path.insert(0, Loader(name, path, tree))
        import pytest

        no_warning = "ignore::pytest.PytestAssertRewriteWarning"  # hypothesis is imported before the fork
        os._exit(int(pytest.main([*tests, "-x", "-q", "-p", "no:cacheprovider", "-W", no_warning])))
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def survivors(name: str, most: int) -> Iterator[str]:
    """What no test notices in a module; the numbers go to stderr."""
    path = ROOT / (name.replace(".", "/") + ".py")
    source = path.read_text()
    tests = TESTS[name]
    whole, _, count = mutated(source, -1)
    if not survives(name, path, whole, tests):
        raise SystemExit(f"{name}: its tests fail without a change")
    killed = 0
    chosen = range(0, count, -(-count // most))
    for target in chosen:
        tree, change, _ = mutated(source, target)
        if survives(name, path, tree, tests):
            yield f"{path.relative_to(ROOT)}:{change}"
        else:
            killed += 1
    sys.stderr.write(f"{name}: {killed} of {len(chosen)} mutants killed ({count} places)\n")


def main() -> None:
    """Run the mutants of the modules that are named, or of all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("modules", nargs="*", default=list(TESTS))
    parser.add_argument("--most", type=int, default=60, help="mutants of a module, evenly spread over its places")
    given = parser.parse_args()
    os.chdir(ROOT)
    os.environ["EPLB_HYPOTHESIS_PROFILE"] = "mutants"
    sys.path[:0] = [str(ROOT), str(ROOT / "traces"), str(ROOT / "cli")]
    for heavy in ("numpy", "scipy.optimize", "numba", "hypothesis", "pytest"):
        importlib.import_module(heavy)
    for name in given.modules:
        for line in survivors(name, given.most):
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
