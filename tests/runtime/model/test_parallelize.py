"""Models with placed experts generate the tokens of the whole model; other models and plans are refused."""

from importlib.util import find_spec

import pytest
import torch

pytest.importorskip("transformers")

from eplb.core.placement import Placement  # transformers first
from eplb.core.problem import Plan
from eplb.core.topology import Topology
from eplb.errors import InputError
from eplb.runtime import (
    ExchangeOverflowError,
    Launch,
    RankGroup,
    SafetensorsCheckpoint,
    run_processes,
    summed_counts,
)
from eplb.runtime.model.parallelize import parallelize
from eplb_traces import ModelShape
from tests.runtime.model import parallel_cases
from tests.traces.recorder import models


def test_greedy_tokens_are_those_of_the_whole_model_on_two_processes():
    assert run_processes(Launch(2), parallel_cases.run_families, None) == [[], []]


def _plan(num_layers=3, num_experts=8, layer_ids=None):
    placement = Placement([range(num_experts)] * num_layers, num_experts, Topology(1, 2, num_experts // 2))
    return Plan(placement, ModelShape(num_layers, num_experts, 3, moe_layer_ids=layer_ids), "given")


def _alone(plan):
    return RankGroup(plan.placement.topology)


def test_experts_are_read_from_a_checkpoint_of_the_same_model(tmp_path):
    model, plan = models.build("qwen3_moe"), _plan()
    model.save_pretrained(tmp_path)
    prompts = torch.randint(3, 64, (2, 5), generator=torch.Generator().manual_seed(0))
    expected = model(prompts).logits.detach()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".experts." in name:
                parameter.zero_()
    parallelize(model, plan, _alone(plan), source=SafetensorsCheckpoint(str(tmp_path)), exchange="allgather")
    assert torch.allclose(model(prompts).logits.detach(), expected, atol=1e-5)
    assert not any(".experts." in name and "shared" not in name for name, _ in model.named_parameters())


def test_a_model_whose_experts_were_never_loaded_is_filled_from_the_checkpoint(tmp_path):
    model, plan = models.build("olmoe"), _plan()
    model.save_pretrained(tmp_path)
    prompts = torch.randint(3, 64, (2, 5), generator=torch.Generator().manual_seed(0))
    expected = model(prompts).logits.detach()
    for layer in model.model.layers:
        layer.mlp.experts.to("meta")
    cpu, checkpoint = torch.device("cpu"), SafetensorsCheckpoint(tmp_path)
    parallel = parallelize(model, plan, _alone(plan), source=checkpoint, device=cpu, most_tokens=10)
    assert torch.allclose(model.to(cpu)(prompts).logits.detach(), expected, atol=1e-5)
    why = "not symmetric: tensors on cpu, the kernels need a GPU, plain experts: the weights are on cpu"
    assert repr(parallel) == f"ParallelModel(3 layers, 8 slots of ranks 0 to 1, allgather: {why})"


def _through_peer_memory(member, _):
    """Largest change of the logits by placed experts, and what a larger batch raises."""
    model = models.build("olmoe")
    plan = _plan()
    prompts = torch.randint(3, 64, (1, 2 + member.process), generator=torch.Generator().manual_seed(member.process))
    expected = model(prompts).logits.detach()
    group = RankGroup.of(plan.placement.topology, member.process_group)
    parallelize(model, plan, group, exchange="symmetric", most_tokens=3)
    change = float((model(prompts).logits.detach() - expected).abs().max())
    summed_counts(torch.zeros(1), group)  # waits: the error of a faster process may end the pass of a slower one
    try:
        model(torch.ones((1, 3 + member.process), dtype=torch.int64))
    except ExchangeOverflowError as error:
        return change, str(error)
    return change, "nothing"


@pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")
def test_the_exchange_over_peer_memory_takes_up_to_the_tokens_that_were_given(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    for change, error in run_processes(Launch(2), _through_peer_memory, None):
        assert change < 1e-4
        assert error == "rank 1: more tokens than the capacity of the region"
    with pytest.raises(InputError, match="backend symmetric: sizes are missing"):
        parallelize(models.build("olmoe"), _plan(), _alone(_plan()), exchange="symmetric")


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (_plan(num_layers=2), "model of 3 layers x 8 experts: the plan is for 2 layers x 8 experts"),
        (_plan(num_experts=6), "the plan is for 3 layers x 6 experts"),
        (_plan(layer_ids=(1, 2, 3)), r"MoE layers are \(1, 2, 3\): the model's are \(0, 1, 2\)"),
    ],
)
def test_a_plan_of_another_model_is_refused(plan, message):
    with pytest.raises(InputError, match=message):
        parallelize(models.build("qwen3_moe"), plan, _alone(plan))


@pytest.mark.parametrize(("ranks", "slots"), [(2, 2), (2, 8), (4, 2)])
def test_a_group_with_other_slots_than_the_plan_is_refused(ranks, slots):
    group = RankGroup(Topology(1, ranks, slots))
    with pytest.raises(InputError, match=f"the plan is for 2 ranks with 8 slots: the group has {ranks} ranks"):
        parallelize(models.build("qwen3_moe"), _plan(), group, exchange="allgather")


def test_a_migration_that_stopped_between_two_layers_can_be_repeated():
    for seen in run_processes(Launch(2), parallel_cases.stop_and_repeat, None):
        assert seen == ["checking layer 1: failed on rank 1", "layers of the new placement: [True, False, False]"]


def test_processes_that_migrate_to_different_placements_all_raise():
    for error in run_processes(Launch(2, timeout_s=60), parallel_cases.migrate_apart, None):
        assert error.startswith("planning the migration: rank 1 has plan")


def test_models_without_a_known_block_are_refused():
    with pytest.raises(InputError, match="Linear: no MoE block found, expected one of DeepseekV2Moe"):
        parallelize(torch.nn.Linear(2, 2), _plan(), _alone(_plan()))
    with pytest.raises(InputError, match="GptOssForCausalLM: no MoE block found"):
        parallelize(models.build("gpt_oss"), _plan(), _alone(_plan()))


def test_another_activation_is_refused():
    model = models.build("qwen3_moe")
    model.model.layers[1].mlp.experts.act_fn = torch.nn.GELU()
    with pytest.raises(InputError, match=r"layers\.1\.mlp\.experts has the activation GELU: expected silu"):
        parallelize(model, _plan(), _alone(_plan()))
