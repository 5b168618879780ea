"""Our YAML in the configuration class of TensorRT-LLM, written here from its description.

The package is gigabytes and needs CUDA libraries to be imported, so its `MoeLoadBalancerConfig` (1.2.1) is re-created:
a pydantic model of three fields that forbids others, `setup`, which refuses slots that the ranks do not divide, and the
look-up of a layer by its absolute index with its two errors. Nothing of TensorRT-LLM itself is run.
"""

import pytest

from eplb.errors import FormatError
from eplb.formats import write_plan
from eplb.formats.engine_check import check_file
from tests.real_engines.our_plans import SHAPE, a_plan

pydantic = pytest.importorskip("pydantic")
yaml = pytest.importorskip("yaml")

NUM_RANKS = 4


class LoadBalancer(pydantic.BaseModel):
    """What the description says of the class, and no more."""

    model_config = pydantic.ConfigDict(extra="forbid")
    num_slots: int | None = None
    initial_global_assignments: dict[int, list[int]] | None = None
    layer_updates_per_iter: int = 0

    def assignments(self, layer, num_ranks):
        """The slots of a layer, as the layer asks for them when the model is built."""
        if self.num_slots is None or self.num_slots % num_ranks:
            raise ValueError("num_slots")
        row = self.initial_global_assignments[layer]
        if len(row) != self.num_slots:
            raise ValueError("length")
        return row


def load(path, num_ranks=NUM_RANKS):
    """Rows of all MoE layers as TensorRT-LLM gets them, or the error it stops with."""
    try:
        config = LoadBalancer(**yaml.safe_load(path.read_text()))
        return [config.assignments(layer, num_ranks) for layer in SHAPE.moe_layer_ids]
    except (ValueError, KeyError) as error:
        return error


def refusal(path, num_ranks=NUM_RANKS):
    try:
        check_file(path, "trtllm", num_ranks, shape=SHAPE)
    except FormatError as error:
        return str(error)
    return None


@pytest.fixture
def path(tmp_path):
    write_plan(a_plan(NUM_RANKS, slots_per_rank=6), tmp_path / "plan.yaml", "trtllm")
    return tmp_path / "plan.yaml"


def test_our_file_is_a_configuration(path):
    assert load(path) == a_plan(NUM_RANKS, slots_per_rank=6).placement.physical_to_logical_map.tolist()
    assert refusal(path) is None


def change(path, edit):
    fields = yaml.safe_load(path.read_text())
    edit(fields)
    path.write_text(yaml.safe_dump(fields, default_flow_style=None, width=100_000))


def without_a_layer(fields):
    del fields["initial_global_assignments"][SHAPE.moe_layer_ids[1]]


def with_a_short_row(fields):
    fields["initial_global_assignments"][SHAPE.moe_layer_ids[1]].pop()


def with_one_more_key(fields):
    fields["strategy"] = "greedy"


def with_other_slots(fields):
    fields["num_slots"] = 25


def with_text_for_an_id(fields):
    fields["initial_global_assignments"][SHAPE.moe_layer_ids[0]][3] = "three"


@pytest.mark.parametrize(
    "edit", [without_a_layer, with_a_short_row, with_one_more_key, with_other_slots, with_text_for_an_id]
)
def test_what_the_class_refuses_is_refused_by_the_check(edit, path):
    change(path, edit)
    assert isinstance(load(path), ValueError | KeyError)
    assert refusal(path) is not None


def test_ranks_that_do_not_divide_are_refused_by_both(path):
    assert isinstance(load(path, 5), ValueError)
    assert "ValueError" in refusal(path, 5)


@pytest.mark.parametrize(("found", "what"), [(-1, "accepts -1"), (16, "accepts it")])
def test_ids_are_not_looked_at_by_the_class_and_refused_by_the_check(found, what, path):
    def edit(fields):
        fields["initial_global_assignments"][SHAPE.moe_layer_ids[0]][3] = found

    change(path, edit)
    assert load(path)[0][3] == found
    assert what in refusal(path)
