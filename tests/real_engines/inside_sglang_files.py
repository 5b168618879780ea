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

from sglang.srt.arg_groups import parallel_hook  # noqa: E402
from sglang.srt.eplb import expert_location  # noqa: E402
from sglang.srt.eplb.expert_location_dispatch import (  # noqa: E402
    ExpertLocationDispatchInfo,
    topk_ids_logical_to_physical,
)
from sglang.srt.server_args import ServerArgs  # noqa: E402

import eplb  # noqa: E402
from eplb.core.dispatch_rule import DispatchRule  # noqa: E402
from eplb.dispatch.engine_dispatch import engine_dispatch, option_values  # noqa: E402
from eplb.dispatch.engine_rules import rank_slot_map  # noqa: E402
from eplb.errors import FormatError, InputError  # noqa: E402
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


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("num_ranks", "num_nodes"), [(4, 1), (4, 2), (8, 4), (8, 1)])
def test_static_dispatch_is_the_one_that_we_judge(num_ranks, num_nodes, seed, tmp_path):
    """Draw by draw, on every rank and in every layer."""
    slots_per_rank = (NUM_EXPERTS + REDUNDANT) // num_ranks
    plan = a_plan(num_ranks, slots_per_rank=slots_per_rank, num_nodes=num_nodes, seed=seed)
    path = tmp_path / "plan.json"
    eplb.write_placement(plan, path, format="sglang")
    server = {"num_ranks": num_ranks, "redundant": REDUNDANT, "nnodes": num_nodes, "moe_a2a_backend": "deepep"}
    theirs = [read_location(path, rank=r, **server).logical_to_rank_dispatch_physical_map for r in range(num_ranks)]
    ours = rank_slot_map(plan.placement, DispatchRule.SGLANG_STATIC, SHAPE)
    np.testing.assert_array_equal(ours, moe(torch.stack(theirs, dim=1)))  # [L, R, E]


def slot_counts(path, topk, *, rank, **server):
    """[L, P] tokens that a rank sends to each slot, in SGLang's own dispatch."""
    model = put_model_in()
    with serve(init_expert_location=str(path), **server):
        metadata = expert_location.compute_initial_expert_location_metadata(model, rank)
        expert_location.set_global_expert_location_metadata(metadata, allow_overwrite=True)
        infos = [ExpertLocationDispatchInfo.init_new(layer + DENSE_LAYERS) for layer in range(NUM_LAYERS)]
        slots = [topk_ids_logical_to_physical(topk, info).flatten() for info in infos]
    return np.stack([torch.bincount(of_layer, minlength=NUM_EXPERTS + REDUNDANT).numpy() for of_layer in slots])


@pytest.mark.parametrize("num_nodes", [1, 2])
@pytest.mark.parametrize(
    ("backend", "algorithm", "rule"),
    [
        ("deepep", "static", DispatchRule.SGLANG_STATIC),
        ("deepep", "dynamic", DispatchRule.SGLANG_DYNAMIC),
        ("none", "dynamic", DispatchRule.SGLANG_BY_ROW),
    ],
)
def test_ranks_get_the_load_that_evaluate_predicts(backend, algorithm, rule, num_nodes, tmp_path):
    """The same tokens on every rank; static exactly, the others within five standard deviations."""
    plan = a_plan(NUM_RANKS, slots_per_rank=6, num_nodes=num_nodes)
    path = tmp_path / "plan.json"
    eplb.write_placement(plan, path, format="sglang")
    torch.manual_seed(0)
    skewed = torch.distributions.Dirichlet(torch.full((NUM_EXPERTS,), 0.5)).sample()
    topk = torch.multinomial(skewed.expand(5000, -1) + 1e-3, 4)
    server = {**SERVER, "nnodes": num_nodes, "moe_a2a_backend": backend, "ep_dispatch_algorithm": algorithm}
    found = sum(slot_counts(path, topk, rank=rank, **server) for rank in range(NUM_RANKS))
    tokens = np.bincount(topk.flatten().numpy(), minlength=NUM_EXPERTS) * NUM_RANKS
    judged = eplb.evaluate(plan.placement, eplb.ExpertLoad(np.tile(tokens, (1, NUM_LAYERS, 1)), shape=SHAPE), rule)
    by_rank = found.reshape(NUM_LAYERS, NUM_RANKS, -1).sum(axis=2)
    if rule is DispatchRule.SGLANG_STATIC:
        np.testing.assert_allclose(by_rank, judged.rank_load[0], rtol=1e-12)
    else:
        # Without a backend all ranks make the same choice, so their noise adds up.
        independent = NUM_RANKS if backend == "none" else 1
        noise = 5 * np.sqrt(tokens.sum() / 4 * independent)
        assert np.abs(by_rank - judged.rank_load[0]).max() <= noise
    if (backend, num_nodes) == ("deepep", 2):  # near replicas get more than an even split gives them
        even = eplb.evaluate(plan.placement, judged.load).rank_load[0]
        assert np.abs(by_rank - even).max() > 0.05 * even.mean()


def resolved(a2a, algorithm):
    """The dispatch algorithm of a server that loads a file, as SGLang resolves its flags."""
    server = ServerArgs(model_path="dummy", init_expert_location="plan.json", moe_a2a_backend=a2a)
    if algorithm is not None:
        server.ep_dispatch_algorithm = algorithm
    parallel_hook.handle_eplb_and_dispatch(server)
    return parallel_hook.resolving_view(server).ep_dispatch_algorithm


@pytest.mark.parametrize("a2a", option_values("sglang")["a2a"])
def test_the_default_of_the_table_is_what_the_server_takes(a2a):
    assert f"--ep-dispatch-algorithm {resolved(a2a, None)}" in engine_dispatch("sglang", {"a2a": a2a}).flags


@pytest.mark.parametrize("algorithm", ["static", "lp"])
def test_what_the_table_refuses_without_a_backend_the_server_refuses(algorithm):
    with pytest.raises(ValueError, match="picks a different physical replica per rank"):
        resolved("none", algorithm)
    with pytest.raises(InputError, match="SGLang refuses"):
        engine_dispatch("sglang", {"a2a": "none", "algorithm": algorithm})


def a_rebalanced_map(plan, rank, **server):
    """What SGLang holds after an online rebalance that chose our placement: `init_by_eplb` gives no rank away."""
    of_layer = [0] * DENSE_LAYERS + list(range(NUM_LAYERS))
    phy2log, log2phy, _ = (torch.from_numpy(of_moe[of_layer]) for of_moe in plan.placement.maps())
    with serve(**server):
        return expert_location.ExpertLocationMetadata._init_raw(NUM_RANKS, phy2log, log2phy, rank)


def test_after_an_online_rebalance_nothing_is_narrowed(plan):
    """`init_by_eplb` keeps all candidates on every rank: dynamic draws from all replicas, with any backend."""
    server = {**SERVER, "nnodes": 2, "moe_a2a_backend": "deepep", "ep_dispatch_algorithm": "dynamic"}
    for rank in range(NUM_RANKS):
        count = moe(a_rebalanced_map(plan, rank, **server).logical_to_all_physical_map_num_valid)
        np.testing.assert_array_equal(count, plan.placement.logical_replica_count)


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
