"""What the public functions take as load, trace and placement: each form gives the same answer, others are refused."""

from pathlib import Path

import numpy as np
import pytest

import eplb
from eplb.arguments.accepted import accepted_load
from eplb.errors import InputError
from eplb_traces import write_load, write_trace
from tests.traces.examples import small_trace

TOKENS = [[9.0, 3.0, 2.0, 2.0], [1.0, 2.0, 3.0, 4.0]]
LOAD = eplb.ExpertLoad(TOKENS)
TOPOLOGY = eplb.Topology(1, 2, 3)


@pytest.mark.parametrize("form", ["array", "ints", "lists", "float32", "tensor", "path", "text"])
def test_every_form_of_a_load_gives_the_same_plan(form, tmp_path):
    file = tmp_path / "load.npz"
    write_load(LOAD, file)
    forms = {
        "array": lambda: np.array(TOKENS),
        "ints": lambda: np.array(TOKENS, dtype=np.int64),
        "lists": lambda: TOKENS,
        "float32": lambda: np.array(TOKENS, dtype=np.float32)[None],
        "tensor": lambda: pytest.importorskip("torch").tensor(TOKENS).bfloat16(),
        "path": lambda: file,
        "text": lambda: str(file),
    }
    load = forms[form]()
    expected = eplb.plan(LOAD, TOPOLOGY)
    assert eplb.plan(load, TOPOLOGY).placement == expected.placement
    judged = eplb.evaluate(expected, load)
    assert judged.rank_load.tolist() == eplb.evaluate(expected.placement, LOAD).rank_load.tolist()
    assert eplb.compare(load, TOPOLOGY, ["linear"])[0].evaluation.load == LOAD


def test_one_row_is_one_layer_and_three_dimensions_are_windows():
    assert accepted_load(np.array(TOKENS[0])).tokens.shape == (1, 1, 4)
    assert accepted_load(np.zeros((5, 2, 4)) + 1).tokens.shape == (5, 2, 4)


def test_a_trace_is_counted_as_a_load_and_read_as_a_trace(tmp_path):
    pytest.importorskip("pyarrow")
    trace, file = small_trace(), tmp_path / "trace.parquet"
    write_trace(trace, file)
    topology = eplb.Topology(1, 2, 5)
    plan = eplb.plan(trace, topology, "greedy")
    assert plan.placement == eplb.plan(trace.load(), topology, "greedy").placement
    spread = eplb.evaluate(plan, file, trace=str(file)).spread
    expected = eplb.evaluate(plan.placement, trace.load(), trace=trace).spread
    assert spread.ranks_per_token.tolist() == expected.ranks_per_token.tolist()


@pytest.mark.parametrize("form", ["plan", "native", "sglang"])
def test_every_form_of_a_placement_is_judged_and_replanned_alike(form, tmp_path):
    plan = eplb.plan(LOAD, TOPOLOGY)
    file = tmp_path / "plan.json"
    if form != "plan":
        eplb.write_placement(plan, file, form, eplb.ModelShape(2, 4, moe_layer_ids=(0, 1), num_hidden_layers=2))
    given = plan if form == "plan" else file
    later = np.array(TOKENS)[:, ::-1]
    assert eplb.evaluate(given, later).rank_load.tolist() == eplb.evaluate(plan.placement, later).rank_load.tolist()
    assert eplb.rebalance(given, later).placement == eplb.rebalance(plan.placement, later).placement


@pytest.mark.parametrize(
    ("load", "message"),
    [
        (None, "load is of type NoneType: expected an ExpertLoad"),
        (7, "load is of type int: expected"),
        (TOPOLOGY, "load is of type Topology: expected"),
        (eplb.Placement([[0, 1, 2, 3, 0, 1]], 4, TOPOLOGY), "load is of type Placement: expected"),
        (["a.npz", "b.npz"], "load is of type list of str: expected"),
        ([[1.0, 2.0], [3.0]], "load is of type list of list: expected"),
        (np.array([["1"]]), r"load is of type ndarray of <U1: expected"),
        (np.array([[True, False]]), "load is of type ndarray of bool: expected"),
        (np.array([[1j, 2.0]]), "load is of type ndarray of complex128: expected"),
        (np.ones((1, 2, 3, 4)), r"load is an array of shape \(1, 2, 3, 4\): expected \[E\], \[L, E\] or \[W, L, E\]"),
        (np.float64(3.0), "load is of type float64: expected"),
        (np.array([[1.0, -2.0, 3.0, 4.0]]), r"tokens\[window 0, layer 0, expert 1\] = -2.0"),
        ("no/such/file.npz", "no/such/file.npz"),
    ],
)
def test_what_is_no_load_is_refused_by_name(load, message):
    with pytest.raises(InputError, match=message):
        eplb.plan(load, TOPOLOGY)


@pytest.mark.filterwarnings("ignore:.*nested tensors")
@pytest.mark.parametrize("kind", ["sparse_coo", "meta", "nested"])
def test_a_tensor_that_is_no_array_is_refused(kind):
    torch = pytest.importorskip("torch")
    tensor = torch.tensor(TOKENS)
    forms = {
        "sparse_coo": tensor.to_sparse,
        "meta": lambda: tensor.to("meta"),
        "nested": lambda: torch.nested.nested_tensor(list(tensor)),
    }
    for use in (lambda it: eplb.plan(it, TOPOLOGY), lambda it: eplb.rebalance_experts(it, 6, 1, 1, 2)):
        with pytest.raises(InputError, match=f"tensor is .*{kind}.*: expected a dense one"):
            use(forms[kind]())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: eplb.plan(LOAD, 8), "topology is of type int: expected an eplb.Topology"),
        (lambda: eplb.compare(LOAD, "8"), "topology is of type str: expected an eplb.Topology"),
        (
            lambda: eplb.plan(LOAD, TOPOLOGY, "traffic", trace=LOAD),
            "trace is of type ExpertLoad: expected a RoutingTrace",
        ),
        (
            lambda: eplb.evaluate(LOAD, LOAD),
            "placement is of type ExpertLoad: expected a Placement, a Plan or the path",
        ),
        (lambda: eplb.rebalance(TOKENS, LOAD), "previous is of type list of list: expected a Placement"),
        (lambda: eplb.evaluate(Path("missing.json"), LOAD), "missing.json"),
        (lambda: eplb.write_placement(LOAD, "x.json"), "plan is of type ExpertLoad: expected a Plan or a Placement"),
    ],
)
def test_other_arguments_are_refused_by_name(call, message):
    with pytest.raises(InputError, match=message):
        call()
