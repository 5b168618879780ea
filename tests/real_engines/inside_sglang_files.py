"""Our files in SGLang's own loader, and its dispatch from them; SGLang 0.5.23.

Exercised: `compute_initial_expert_location_metadata` with `.json` and `.pt` (`init_by_mapping`, `init_by_eplb`),
`ExpertLocationMetadata`, `compute_logical_to_rank_dispatch_physical_map`, `ExpertLocationDispatchInfo`,
`topk_ids_logical_to_physical`, all on the CPU under a configuration of SGLang's own `override_server_args`. Stubbed:
see `engine_import` and, for the look-up of the model's class, `sglang_server`.
"""

import json

import numpy as np
import pytest
import torch

from tests.real_engines.engine_import import prepare

prepare("sglang")

from sglang.srt.eplb import expert_location  # noqa: E402
from sglang.srt.eplb.expert_location_dispatch import (  # noqa: E402
    ExpertLocationDispatchInfo,
    topk_ids_logical_to_physical,
)

import eplb  # noqa: E402
from eplb.core.dispatch_rule import DispatchRule  # noqa: E402
from eplb.dispatch.engine_rules import rank_slot_map  # noqa: E402
from eplb.errors import FormatError  # noqa: E402
from eplb.formats.engine_check import check_file  # noqa: E402
from tests.real_engines.our_plans import DENSE_LAYERS, NUM_EXPERTS, NUM_LAYERS, SHAPE, a_load, a_plan  # noqa: E402
from tests.real_engines.sglang_server import forget_live_map, put_model_in, read_location, serve  # noqa: E402

REDUNDANT = 8
NUM_RANKS = 4
SERVER = {"num_ranks": NUM_RANKS, "redundant": REDUNDANT}


@pytest.fixture(autouse=True)
def before_the_start():
    forget_live_map()


@pytest.fixture
def plan():
    return a_plan(NUM_RANKS, slots_per_rank=6, num_nodes=2)


def moe(rows):
    return np.asarray(rows)[DENSE_LAYERS:]


@pytest.mark.parametrize("suffix", [".json", ".pt"])
def test_sglang_loads_the_map_of_every_layer(suffix, plan, tmp_path):
    path = tmp_path / f"plan{suffix}"
    eplb.write_placement(plan, path, format="sglang")
    check_file(path, "sglang", NUM_RANKS, shape=SHAPE)
    found = read_location(path, moe_a2a_backend="none", **SERVER)
    phy2log, log2phy, logcnt = plan.placement.maps()
    assert (found.num_layers, found.ep_size, found.num_local_physical_experts) == (DENSE_LAYERS + NUM_LAYERS, 4, 6)
    np.testing.assert_array_equal(moe(found.physical_to_logical_map), phy2log)
    all_slots = moe(found.logical_to_all_physical_map)
    np.testing.assert_array_equal(all_slots[:, :, : log2phy.shape[2]], log2phy)
    assert (all_slots[:, :, log2phy.shape[2] :] == -1).all()
    np.testing.assert_array_equal(moe(found.logical_to_all_physical_map_num_valid), logcnt)


def test_for_engine_gives_the_tensors_that_sglang_makes(plan, tmp_path):
    path = tmp_path / "plan.json"
    eplb.write_placement(plan, path, format="sglang")
    found = read_location(path, moe_a2a_backend="none", **SERVER)
    ours = eplb.for_engine(plan, ep_size=NUM_RANKS, ep_rank=0).torch("sglang")
    assert torch.equal(ours.physical_to_logical_map, found.physical_to_logical_map)
    assert torch.equal(ours.logical_to_physical_map, found.logical_to_all_physical_map)
    assert torch.equal(ours.logical_replica_count, found.logical_to_all_physical_map_num_valid)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("num_nodes", [1, 2])
def test_static_dispatch_is_the_one_that_we_judge(num_nodes, seed, tmp_path):
    """Single draws differ by design (each layer has a generator of its own here); near copies and shares do not."""
    plan = a_plan(NUM_RANKS, slots_per_rank=6, num_nodes=num_nodes, seed=seed)
    path = tmp_path / "plan.json"
    eplb.write_placement(plan, path, format="sglang")
    server = {**SERVER, "nnodes": num_nodes, "moe_a2a_backend": "none"}
    theirs = [read_location(path, rank=r, **server).logical_to_rank_dispatch_physical_map for r in range(NUM_RANKS)]
    theirs = moe(torch.stack(theirs, dim=1))  # [L, R, E]
    for layer in range(NUM_LAYERS):
        ours = rank_slot_map(plan.placement, layer, DispatchRule.SGLANG_STATIC)
        own = plan.placement.topology.rank_of_slot[theirs[layer]] == np.arange(NUM_RANKS)[:, None]
        np.testing.assert_array_equal(ours[own], theirs[layer][own])
        for expert in range(NUM_EXPERTS):
            shares = [sorted(np.unique(m[:, expert], return_counts=True)[1].tolist()) for m in (ours, theirs[layer])]
            assert shares[0] == shares[1], (layer, expert, ours[:, expert], theirs[layer][:, expert])


@pytest.mark.parametrize("algorithm", ["static", "dynamic"])
@pytest.mark.parametrize("backend", ["none", "deepep"])
def test_sglang_dispatches_every_token_to_a_copy_of_its_expert(algorithm, backend, plan, tmp_path):
    path = tmp_path / "plan.json"
    eplb.write_placement(plan, path, format="sglang")
    model = put_model_in()
    topk = torch.randint(0, NUM_EXPERTS, (200, 4), generator=torch.Generator().manual_seed(0))
    server = {**SERVER, "moe_a2a_backend": backend, "ep_dispatch_algorithm": algorithm}
    with serve(init_expert_location=str(path), **server):
        metadata = expert_location.compute_initial_expert_location_metadata(model, 3)
        expert_location.set_global_expert_location_metadata(metadata, allow_overwrite=True)
        for layer in range(NUM_LAYERS):
            info = ExpertLocationDispatchInfo.init_new(layer + DENSE_LAYERS)
            slots = topk_ids_logical_to_physical(topk, info)
            np.testing.assert_array_equal(plan.placement.physical_to_logical_map[layer][slots], topk)


def test_a_file_of_counts_is_a_load_to_both(tmp_path):
    """`{"logical_count": ...}`: SGLang plans from it at start, and we read the same file as a load."""
    counts = np.zeros((DENSE_LAYERS + NUM_LAYERS, NUM_EXPERTS), dtype=int)
    counts[DENSE_LAYERS:] = a_load(0).tokens[0]
    path = tmp_path / "counts.json"
    path.write_text(json.dumps({"logical_count": counts.tolist()}))
    np.testing.assert_array_equal(eplb.read_load(path).tokens[0], a_load(0).tokens[0])
    found = read_location(path, ep_dispatch_algorithm="dynamic", **SERVER)
    assert found.physical_to_logical_map.shape == (DENSE_LAYERS + NUM_LAYERS, NUM_EXPERTS + REDUNDANT)


# --- what SGLang does with bad files, and what `eplb check` says of them ----------------------------------------------

GOOD = [[0, 1, 2, 3, 0, 1], [3, 2, 1, 0, 3, 2]]
TWO_RANKS = {"num_ranks": 2, "redundant": 2}


def ask_both(path, num_ranks=2):
    """The sentence of our refusal or None, and what SGLang made of the file or died of."""
    try:
        check_file(path, "sglang", num_ranks, 4)
        said = None
    except FormatError as error:
        said = str(error)
    model = put_model_in(num_layers=2, num_experts=4)
    try:
        return said, read_location(path, model=model, moe_a2a_backend="none", **{**TWO_RANKS, "num_ranks": num_ranks})
    except Exception as error:
        return said, error


@pytest.mark.parametrize(
    ("content", "death"),
    [
        ({"physical_to_logical_map": [GOOD[0], [3, 2, 0, 0, 3, 2]]}, ZeroDivisionError),  # expert 1 is missing
        ({"physical_to_logical_map": [GOOD[0], [3, 2, 1, 0, 4, 2]]}, IndexError),
        ({"physical_to_logical_map": GOOD, "strategy": "greedy"}, TypeError),
    ],
)
def test_what_kills_sglang_is_refused(content, death, tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(content))
    said, found = ask_both(path)
    assert isinstance(found, death)
    assert said is not None
    assert death is TypeError or death.__name__ in said


def test_slots_that_do_not_divide(tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({"physical_to_logical_map": GOOD}))
    said, found = ask_both(path, num_ranks=4)
    assert isinstance(found, AssertionError)
    assert "AssertionError" in said


def test_an_empty_slot_is_the_last_expert_to_sglang(tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({"physical_to_logical_map": [GOOD[0], [3, 2, 1, 0, -1, 2]]}))
    said, found = ask_both(path)
    assert found.logical_to_all_physical(1, 3) == [0, 4]
    assert "last expert" in said


def test_rows_that_are_too_few_are_found_by_the_check_alone(tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({"physical_to_logical_map": GOOD[:1]}))
    _, found = ask_both(path)
    assert found.num_layers == 1
    with pytest.raises(FormatError, match="rows"):
        check_file(path, "sglang", 2, 4, eplb.ModelShape(1, 4, moe_layer_ids=(1,), num_hidden_layers=2))


@pytest.mark.parametrize("seed", range(40))
def test_verdicts_agree_on_random_files(seed, tmp_path):
    """Files with ids from -1 to E: SGLang lives exactly where the check passes, but for -1, which it misreads."""
    rng = np.random.default_rng(seed)
    rows = np.array(GOOD)
    for _ in range(rng.integers(0, 3)):
        rows[rng.integers(2), rng.integers(6)] = rng.integers(-1, 5)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({"physical_to_logical_map": rows.tolist()}))
    said, found = ask_both(path)
    lives = not isinstance(found, Exception)
    assert (said is None) == (lives and (rows >= 0).all()), (rows, said, found)
