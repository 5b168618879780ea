"""`eplb.for_engine`: what a rank gets, and that a plan of another model, machine or record is refused in a sentence."""

import dataclasses
import time

import numpy as np
import pytest
import yaml
from hypothesis import given

import eplb
from eplb.engines.for_engine import for_engine
from eplb.engines.rank_layout import ExpertRead
from eplb.errors import FormatError, InputError
from eplb.formats import FORMATS, write_plan
from tests.generators import formats_examples, placements

SHAPE = eplb.ModelShape(3, 16, 4, 4, 2, (1, 2, 4), 6)
FILES = [(entry.name, suffix) for entry in FORMATS.values() for suffix in entry.suffixes]


@pytest.fixture(scope="module")
def planned():
    load = eplb.ExpertLoad(np.random.default_rng(0).lognormal(0, 1, (3, 16)) * 100, shape=SHAPE)
    return eplb.plan(load, eplb.Topology(2, 2, 5), "greedy")


def written(planned, folder, name, suffix, *, sidecar=True):
    if suffix == ".pt":
        pytest.importorskip("torch")
    path = folder / f"plan{suffix}"
    write_plan(planned, path, name)
    beside = path.with_name(path.name + ".eplb.json")
    if not sidecar and beside.exists():
        beside.unlink()
    return path


def test_a_worked_case():
    # Two ranks of 3 slots; rank 1 holds expert 2 twice in layer 0.
    placement = eplb.Placement([[0, 1, 3, 2, 1, 2], [3, 2, 1, 0, 3, 2]], 4, eplb.Topology(1, 2, 3))
    layout = for_engine(placement, ep_size=2, ep_rank=1, model_shape=eplb.ModelShape(2, 4, moe_layer_ids=(3, 5)))
    assert layout.local_experts.tolist() == [[2, 1, 2], [0, 3, 2]]
    assert layout.expert_map.tolist() == [[-1, 1, 0, -1], [0, -1, 2, 1]]
    assert layout.expert_map.dtype == np.int32
    assert layout.loading_order == (
        ExpertRead(0, 3, 2, (0, 2)),
        ExpertRead(0, 3, 1, (1,)),
        ExpertRead(1, 5, 0, (0,)),
        ExpertRead(1, 5, 3, (1,)),
        ExpertRead(1, 5, 2, (2,)),
    )
    assert layout.maps.logical_replica_count.tolist() == [[1, 2, 2, 1], [1, 1, 2, 2]]
    assert layout.maps.logical_to_physical_map[0].tolist() == [[0, -1], [1, 4], [3, 5], [2, -1]]
    assert layout.maps.physical_to_logical_map.dtype == np.int64
    assert layout.expert_map_of(5).tolist() == [0, -1, 2, 1]
    assert (layout.ep_size, layout.ep_rank) == (2, 1)


@formats_examples
@given(placement=placements(holes=True))
def test_all_ranks_together_hold_the_placement_and_read_every_expert_once(placement):
    num_ranks = placement.topology.num_ranks
    layouts = [for_engine(placement, ep_size=num_ranks, ep_rank=rank) for rank in range(num_ranks)]
    together = np.concatenate([layout.local_experts for layout in layouts], axis=1)
    assert np.array_equal(together, placement.physical_to_logical_map)
    for layout in layouts:
        for layer, row in enumerate(layout.local_experts.tolist()):
            reads = [read for read in layout.loading_order if read.layer == layer]
            assert [read.expert for read in reads] == list(dict.fromkeys(expert for expert in row if expert >= 0))
            for read in reads:
                assert [slot for slot, expert in enumerate(row) if expert == read.expert] == list(read.slots)
                assert layout.expert_map[layer, read.expert] == read.slots[0]
            assert {e for e in range(placement.num_experts) if layout.expert_map[layer, e] >= 0} == set(row) - {-1}


def test_arrays_cannot_be_written_to(planned):
    layout = for_engine(planned, ep_size=4, ep_rank=0)
    for array in (layout.local_experts, layout.expert_map, layout.expert_map_of(1), *layout.maps):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        layout.ep_rank = 1


@pytest.mark.parametrize("sidecar", [True, False], ids=["with its record", "alone"])
@pytest.mark.parametrize(("name", "suffix"), FILES)
def test_every_format_gives_the_same_layout(planned, tmp_path, name, suffix, sidecar):
    path = written(planned, tmp_path, name, suffix, sidecar=sidecar)
    if name == "omni":  # it says only which experts a rank has, not in which slots: they come back sorted
        ranks = np.sort(planned.placement.physical_to_logical_map.reshape(3, 4, 5), axis=2)
        sorted_slots = eplb.Placement(ranks.reshape(3, 20), 16, planned.placement.topology)
        planned = dataclasses.replace(planned, placement=sorted_slots)
    layout = eplb.for_engine(path, ep_size=4, ep_rank=2, model_shape=SHAPE)
    direct = for_engine(planned, ep_size=4, ep_rank=2)
    assert np.array_equal(layout.expert_map, direct.expert_map)
    assert layout.loading_order == direct.loading_order
    assert layout.layer_ids == (1, 2, 4)
    assert layout.shape == SHAPE
    assert layout.digest == direct.digest
    assert np.array_equal(eplb.for_engine(str(path), ep_size=4, ep_rank=2, model_shape=SHAPE).maps[0], direct.maps[0])


@pytest.mark.parametrize("sidecar", [True, False], ids=["with its record", "alone"])
@pytest.mark.parametrize(("name", "suffix"), FILES)
def test_every_format_refuses_another_model(planned, tmp_path, name, suffix, sidecar):
    path = written(planned, tmp_path, name, suffix, sidecar=sidecar)
    # A file of SGLang alone does not say which of its rows are read, only how many layers the model has.
    for change in ({"num_layers": 2, "moe_layer_ids": (1, 2), "num_hidden_layers": 7}, {"num_experts": 32}):
        other = dataclasses.replace(SHAPE, **change)
        with pytest.raises(InputError, match=str(path)):
            for_engine(path, ep_size=4, ep_rank=0, model_shape=other)


def test_what_the_plan_knows_of_the_model_is_kept_where_the_engine_does_not_say(planned):
    bare = eplb.ModelShape(3, 16)
    assert for_engine(planned, ep_size=4, ep_rank=0, model_shape=bare).shape == dataclasses.replace(
        SHAPE, num_expert_groups=1, top_k_groups=None
    )
    assert for_engine(planned.placement, ep_size=4, ep_rank=0).layer_ids == (0, 1, 2)
    assert for_engine(planned.placement, ep_size=4, ep_rank=0, model_shape=SHAPE).layer_ids == (1, 2, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_layers": 2, "moe_layer_ids": (1, 2)}, "layers = 3, the engine's model has 2"),
        ({"num_experts": 32}, "experts = 16, the engine's model has 32"),
        ({"top_k": 6}, "top_k = 4, the engine's model has 6"),
        ({"moe_layer_ids": (0, 1, 2)}, "MoE layer ids = 1-2, 4, the engine's model has 0-2"),
        ({"num_hidden_layers": 7}, "hidden layers = 6, the engine's model has 7"),
    ],
)
def test_another_model_is_refused_with_a_sentence(planned, tmp_path, change, message):
    other = dataclasses.replace(SHAPE, **change)
    with pytest.raises(InputError) as caught:
        for_engine(planned, ep_size=4, ep_rank=0, model_shape=other)
    assert str(caught.value) == f"the plan is for another model: {message}"
    path = written(planned, tmp_path, "native", ".json")
    with pytest.raises(InputError) as caught:
        for_engine(path, ep_size=4, ep_rank=0, model_shape=other)
    assert str(caught.value) == f"{path} is for another model: {message}"


@pytest.mark.parametrize(("name", "suffix"), FILES)
def test_another_ep_size_is_refused_with_a_sentence(planned, tmp_path, name, suffix):
    path = written(planned, tmp_path, name, suffix)
    with pytest.raises(InputError) as caught:
        for_engine(path, ep_size=2, ep_rank=0)
    assert str(caught.value) == f"{path} is for 4 ranks: the engine runs ep_size = 2, expected a plan for it"


def test_a_flat_file_alone_must_divide_by_the_ep_size(planned, tmp_path):
    path = written(planned, tmp_path, "vllm", ".json", sidecar=False)
    assert for_engine(path, ep_size=2, ep_rank=1, model_shape=SHAPE).local_experts.shape == (3, 10)
    with pytest.raises(FormatError, match="20 slots: expected a multiple of 3 ranks"):
        for_engine(path, ep_size=3, ep_rank=0, model_shape=SHAPE)


@pytest.mark.parametrize(
    ("ep_size", "ep_rank", "message"),
    [
        (0, 0, "ep_size = 0: expected >= 1"),
        (4, 4, "ep_rank = 4: expected 0 <= ep_rank < ep_size = 4"),
        (4, -1, "ep_rank = -1: expected 0 <= ep_rank < ep_size = 4"),
    ],
)
def test_a_rank_that_cannot_be_is_refused(planned, ep_size, ep_rank, message):
    with pytest.raises(InputError) as caught:
        for_engine(planned, ep_size=ep_size, ep_rank=ep_rank)
    assert str(caught.value) == message


def test_a_file_that_its_record_does_not_fit_is_refused(planned, tmp_path):
    path = written(planned, tmp_path, "vllm", ".json")
    rows = planned.placement.physical_to_logical_map.copy()
    rows[0, :2] = rows[0, 1::-1]
    path.write_text(str(rows.tolist()))
    with pytest.raises(InputError) as caught:
        for_engine(path, ep_size=4, ep_rank=0, model_shape=SHAPE)
    assert str(caught.value) == (
        f"{path}: its record plan.json.eplb.json is about another map, so one of the two files was changed: "
        "write the plan again, or remove the record if the map is meant"
    )
    (tmp_path / "plan.json.eplb.json").unlink()
    assert for_engine(path, ep_size=4, ep_rank=0, model_shape=SHAPE).local_experts[0, 0] == rows[0, 0]


def test_ranks_that_read_different_plans_have_different_digests(planned):
    first = for_engine(planned, ep_size=4, ep_rank=0)
    assert for_engine(planned, ep_size=4, ep_rank=3, digest=first.digest).ep_rank == 3
    rows = planned.placement.physical_to_logical_map.copy()
    rows[2, :2] = rows[2, 1::-1]
    other = eplb.Placement(rows, 16, planned.placement.topology)
    with pytest.raises(InputError) as caught:
        for_engine(other, ep_size=4, ep_rank=1, digest=first.digest)
    found = for_engine(other, ep_size=4, ep_rank=1).digest
    assert found != first.digest
    assert str(caught.value) == f"the placement has the digest {found}: expected {first.digest}, as another rank has it"


def test_dense_layers_have_no_experts(planned):
    layout = for_engine(planned, ep_size=4, ep_rank=0)
    assert [layout.layer_index(layer) for layer in (1, 2, 4)] == [0, 1, 2]
    for layer in (0, 3, 5, -1):
        with pytest.raises(InputError) as caught:
            layout.expert_map_of(layer)
        assert str(caught.value) == f"layer {layer} has no experts: the MoE layers are 1-2, 4"


def test_a_file_that_is_no_placement_is_refused(tmp_path):
    path = tmp_path / "plan.json"
    path.write_text("{}")
    with pytest.raises(FormatError, match="no format has these keys"):
        for_engine(path, ep_size=4, ep_rank=0)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "suffix"), FILES)
def test_the_call_takes_milliseconds(tmp_path, name, suffix):
    shape = eplb.ModelShape(61, 256, moe_layer_ids=tuple(range(3, 64)), num_hidden_layers=64)
    load = eplb.ExpertLoad(np.random.default_rng(0).lognormal(0, 1, (61, 256)), shape=shape)
    path = written(eplb.plan(load, eplb.Topology(4, 8, 9), "greedy"), tmp_path, name, suffix)
    times, loading = [], []
    for _ in range(9):
        start = time.process_time()  # not wall time: other programs may run on the machine
        layout = for_engine(path, ep_size=32, ep_rank=7, model_shape=shape)
        times.append(time.process_time() - start)
        assert layout.expert_map.shape == (61, 256)
        assert len(layout.loading_order) == 61 * 9
        assert layout.maps.logical_replica_count.sum() == 61 * 288
        if name == "trtllm":
            start = time.process_time()
            yaml.load(path.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
            loading.append(time.process_time() - start)
    # PyYAML, which alone reads every YAML that the engine reads, takes about 0.1 s for 17,568 entries in C; the whole
    # call takes half of that.
    assert min(times) < (0.9 * min(loading) if name == "trtllm" else 0.05)
