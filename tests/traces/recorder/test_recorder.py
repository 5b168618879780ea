import inspect
import sys
import threading

import numpy as np
import pytest

from eplb_traces import InputError, MissingExtraError, ModelShape, read_load, read_trace, write_load
from tests.traces.examples import joined

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from eplb_traces.recorder.recorder import record  # noqa: E402  # needs torch
from eplb_traces.recorder.routers import find_routers, shape_of_model  # noqa: E402
from tests.traces.recorder.models import FAMILIES, NAMES, SHAPE, PlainModel, build, recomputed  # noqa: E402


@pytest.fixture(scope="module")
def models():
    """One model of each family, built when first asked for."""
    built = {}

    def of(family):
        if family not in built:
            built[family] = build(family)
        return built[family]

    return of


@pytest.fixture
def seen_by_routers():
    """Collect what reaches each router: {layer: [hidden states of each pass]}."""
    handles = []

    def listen(model):
        seen = {router.layer_id: [] for router in find_routers(model)}
        for router in find_routers(model):
            keep = seen[router.layer_id]
            handles.append(router.module.register_forward_hook(lambda _m, args, _o, k=keep: k.append(args[0].clone())))
        return seen

    yield listen
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize(
    ("name", "message"), [("a.json", "a trace is written as .parquet"), ("none/a.parquet", "none does not exist")]
)
def test_an_invalid_path_is_refused_before_the_model_runs(models, tmp_path, name, message):
    with pytest.raises(InputError, match=message), record(models(FAMILIES[0]), tmp_path / name):
        pytest.fail("the block was entered")


PROMPTS = torch.tensor([[5, 6, 7, 8, 9], [0, 0, 11, 12, 13]])  # the second is padded on the left
MASK = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])


@pytest.mark.parametrize("family", FAMILIES)
def test_prefill_and_decode_equal_recomputed_router_choices(family, models, seen_by_routers, tmp_path):
    model = models(family)
    seen = seen_by_routers(model)
    with record(model, tmp_path / "a.parquet") as recording:
        model.generate(PROMPTS, attention_mask=MASK, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    trace = read_trace(tmp_path / "a.parquet")
    columns = joined(trace)
    # 8 prompt tokens, then three passes of 2 rows: the fourth new token is never fed back.
    assert columns["step"].tolist() == [0] * 8 + [1, 1, 2, 2, 3, 3]
    assert columns["request"].tolist() == [0] * 5 + [1] * 3 + [0, 1] * 3
    assert (recording.num_steps, recording.num_requests, recording.num_tokens) == (4, 2, 14)
    routers = find_routers(model)
    assert trace.shape.moe_layer_ids == tuple(router.layer_id for router in routers)
    for index, router in enumerate(routers):
        chosen = [recomputed(family, router.module, hidden, trace.shape.top_k) for hidden in seen[router.layer_id]]
        kept = torch.cat([chosen[0][MASK.reshape(-1) == 1], *chosen[1:]])
        np.testing.assert_array_equal(np.sort(columns["expert_ids"][:, index], axis=1), kept.numpy())


@pytest.mark.parametrize(
    ("family", "shape"),
    [
        ("mixtral", ModelShape(3, 6, 2, moe_layer_ids=(0, 1, 2), num_hidden_layers=3)),
        ("qwen2_moe", ModelShape(2, 8, 3, moe_layer_ids=(0, 2), num_hidden_layers=3)),
        ("gpt_oss", ModelShape(3, 8, 2, moe_layer_ids=(0, 1, 2), num_hidden_layers=3)),
        ("deepseek_v2", ModelShape(2, 8, 2, 4, 2, moe_layer_ids=(1, 2), num_hidden_layers=3)),
        ("deepseek_v3", ModelShape(2, 16, 4, 4, 2, moe_layer_ids=(1, 2), num_hidden_layers=3)),
    ],
)
def test_the_shape_comes_from_the_configuration(family, shape, models, tmp_path):
    with record(models(family), tmp_path / "a.parquet") as recording:
        models(family)(PROMPTS)
    assert recording.shape == read_trace(tmp_path / "a.parquet").shape == shape


@pytest.mark.parametrize(
    ("family", "width"),
    [
        ("mixtral", "intermediate_size"),
        ("qwen3_moe", "moe_intermediate_size"),
        ("deepseek_v3", "moe_intermediate_size"),
    ],
)
def test_the_bytes_of_an_expert_and_the_name_are_stored(family, width, models, tmp_path):
    model = models(family)
    with record(model, tmp_path / "a.parquet"):
        model(PROMPTS)
    shape = read_trace(tmp_path / "a.parquet").shape
    # Gate, up and down, float32.
    assert shape.expert_bytes == 3 * model.config.hidden_size * getattr(model.config, width) * 4
    assert shape.name == family
    write_load(read_load(tmp_path / "a.parquet"), tmp_path / "a.npz")
    again = read_load(tmp_path / "a.npz").shape
    assert (again.name, again.expert_bytes) == (shape.name, shape.expert_bytes)


def test_a_model_without_found_experts_has_no_bytes(tmp_path):
    model = PlainModel()
    with record(model, tmp_path / "a.parquet", routers=NAMES, shape=SHAPE):
        model(torch.randn(2, 3, 6))
    assert read_trace(tmp_path / "a.parquet").shape.expert_bytes is None


def test_recording_does_not_change_the_model(models, tmp_path):
    model = models("mixtral")
    before = model(PROMPTS).logits
    with record(model, tmp_path / "a.parquet"), torch.inference_mode():
        during = model(PROMPTS).logits
    assert torch.equal(before, during)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


# The name that the installed transformers gives to the key-value cache.
CACHE = "cache" if "cache" in inspect.signature(build(FAMILIES[0]).forward).parameters else "past_key_values"


def test_every_prompt_is_a_request_and_a_cache_continues_its_request(models, tmp_path):
    model = models("qwen3_moe")
    with record(model, tmp_path / "a.parquet") as recording, torch.no_grad():
        first = model(PROMPTS, use_cache=True)[CACHE]
        second = model(PROMPTS[:1], use_cache=True, return_dict=False)[1]
        model(torch.tensor([[3], [4]]), **{CACHE: first}, use_cache=True)
        model(input_ids=torch.tensor([[3, 4]]), **{CACHE: second}, use_cache=True)
        model(inputs_embeds=model.get_input_embeddings()(PROMPTS[:1, :2]))
    columns = joined(read_trace(tmp_path / "a.parquet"))
    assert columns["request"].tolist() == [0] * 5 + [1] * 5 + [2] * 5 + [0, 1] + [2, 2] + [3, 3]
    assert columns["step"].tolist() == [0] * 10 + [1] * 5 + [2, 2] + [3, 3] + [4, 4]
    assert recording.num_requests == 4


def test_tokens_of_ended_rows_are_omitted(models, tmp_path):
    model = models("mixtral")
    with record(model, tmp_path / "a.parquet", end_tokens=[2]), torch.no_grad():
        mask = torch.ones(2, 5, dtype=torch.long)
        cache = model(torch.tensor([[5, 2, 7, 8, 9], [3, 4, 5, 6, 7]]), attention_mask=mask)[CACHE]
        for fed in ([3, 2], [4, 0], [2, 0]):  # the second row ends at once, the first after two tokens
            model(torch.tensor(fed)[:, None], **{CACHE: cache})
        model(torch.tensor([[4, 2], [2, 5]]), **{CACHE: cache})  # another turn: both go on
    columns = joined(read_trace(tmp_path / "a.parquet"))
    # An end token in the prompt ends nothing; passes 1 and 2 keep the first row only, pass 3 nothing, pass 4 all.
    assert columns["step"].tolist() == [0] * 10 + [1] + [2] + [4] * 4
    assert columns["request"].tolist() == [0] * 5 + [1] * 5 + [0] + [0] + [0, 0, 1, 1]


def test_routers_of_any_module_can_be_named(tmp_path):
    model = PlainModel()
    hidden = torch.randn(2, 3, 6)
    with record(model, tmp_path / "a.parquet", routers=NAMES, shape=SHAPE):
        model(hidden)
        model(hidden[0])
        model(hidden=hidden[:1], attention_mask=torch.tensor([[1, 0, 1]]))
    trace = read_trace(tmp_path / "a.parquet")
    assert trace.shape == ModelShape(2, 5, 2, moe_layer_ids=(3, 7))
    columns = joined(trace)
    assert columns["request"].tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 2
    for index, router in enumerate(model.routers):
        logits = router.linear(hidden).detach().reshape(6, 5).numpy()
        expected = np.argsort(-logits, axis=1)[:, :2]
        ids = columns["expert_ids"][:, index]
        np.testing.assert_array_equal(ids, np.concatenate([expected, expected[:3], expected[[0, 2]]]))


def two_ids(logits):
    return logits.topk(2, dim=-1).indices, logits.topk(2, dim=-1).indices


@pytest.mark.parametrize(
    ("output", "shape", "message"),
    [
        (
            lambda logits: logits[..., :4],
            SHAPE,
            r"router routers.0 returned torch.float32 \(2, 3, 4\): expected integers",
        ),
        (
            lambda logits: (logits, logits * 2),
            SHAPE,
            r"expected integers \[tokens, 2\], or one tensor of logits \[.., 5\]",
        ),
        (two_ids, SHAPE, r"returned torch.int64 \(2, 3, 2\), torch.int64 \(2, 3, 2\)"),
        (lambda logits: "none", SHAPE, "returned str"),
        (
            lambda logits: logits,
            ModelShape(2, 5, 2, 5, 3),
            r"returned torch.float32 \(2, 3, 5\): expected integers \[tokens, 2\]$",
        ),
        (
            lambda logits: logits[:, :2].topk(2, dim=-1).indices,
            SHAPE,
            "every router chose for 4 tokens: the pass has 2 x 3",
        ),
    ],
)
def test_outputs_without_a_choice_are_refused(output, shape, message, tmp_path):
    model = PlainModel(output)
    with pytest.raises(InputError, match=message), record(model, tmp_path / "a.parquet", routers=NAMES, shape=shape):
        model(torch.randn(2, 3, 6))
    assert list(tmp_path.iterdir()) == []


def test_routers_of_one_model_may_have_outputs_of_different_shapes(tmp_path):
    model = PlainModel(lambda logits: logits.topk(2, dim=-1).indices)
    model.routers[1].output = lambda logits: logits.topk(2, dim=-1).indices.flatten(0, 1)
    hidden = torch.randn(2, 3, 6)
    with record(model, tmp_path / "a.parquet", routers=NAMES, shape=SHAPE):
        model(hidden)
    ids = joined(read_trace(tmp_path / "a.parquet"))["expert_ids"]
    for index, router in enumerate(model.routers):
        np.testing.assert_array_equal(ids[:, index], router(hidden).reshape(6, 2).numpy())
    model.routers[1].output = lambda logits: logits.topk(2, dim=-1).indices[:1]
    with (
        pytest.raises(InputError, match=r"router routers.1 gave \(3, 2\): expected 6 tokens x 2"),
        record(model, tmp_path / "b.parquet", routers=NAMES, shape=SHAPE),
    ):
        model(hidden)


def test_logits_of_a_router_with_a_selection_bias_are_refused(tmp_path):
    model = PlainModel()
    model.routers[1].e_score_correction_bias = torch.nn.Parameter(torch.zeros(5))
    with (
        pytest.raises(InputError, match=r"router routers.1 returned .*: expected integers"),
        record(model, tmp_path / "a.parquet", routers=NAMES, shape=SHAPE),
    ):
        model(torch.randn(2, 3, 6))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: model(torch.randn(2, 3, 6), skip=(1,)), "router routers.1 did not run in pass 0"),
        (lambda model: model.routers[0](torch.randn(2, 6)), "router routers.0 ran outside the recorded model"),
        (
            lambda model: model(torch.randn(2, 3, 6), torch.ones(2, 1, 3, 3)),
            r"attention_mask is \(2, 1, 3, 3\): expected",
        ),
        (
            lambda model: model(torch.randn(2, 3, 6), torch.ones(2, 2)),
            r"attention_mask is \(2, 2\): expected \[2, 3 or",
        ),
        (lambda model: model(torch.randn(2, 3, 6), "causal"), "attention_mask is str"),
        (lambda model: model(torch.randn(6)), r"called with torch.float32 \(6,\): expected \[B, S\] or"),
        (lambda model: model("text"), "called without a tensor"),
        (lambda model: None, "nothing was recorded"),
    ],
)
def test_passes_that_cannot_be_recorded_leave_no_file(call, message, tmp_path):
    model = PlainModel()
    with pytest.raises(InputError, match=message), record(model, tmp_path / "a.parquet", routers=NAMES, shape=SHAPE):
        call(model)
    assert list(tmp_path.iterdir()) == []


def run_twenty_passes(model, path, and_then=lambda: None):
    with record(model, path, routers=NAMES, shape=SHAPE):
        for _ in range(20):
            model(torch.randn(2, 3, 6))
        and_then()


def test_an_error_of_the_caller_leaves_no_file_and_no_thread(tmp_path):
    with pytest.raises(ZeroDivisionError):
        run_twenty_passes(PlainModel(), tmp_path / "a.parquet", lambda: 1 // 0)
    assert list(tmp_path.iterdir()) == []
    assert not any(thread.name == "eplb-recorder" for thread in threading.enumerate())


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    model = PlainModel()
    with (
        pytest.raises(InputError, match="cannot write"),
        record(model, tmp_path / "none" / "a.parquet", routers=NAMES, shape=SHAPE),
    ):
        model(torch.randn(2, 3, 6))
    with (
        pytest.raises(InputError, match=r"a trace is written as \.parquet"),
        record(model, tmp_path / "a.npz", routers=NAMES, shape=SHAPE),
    ):
        model(torch.randn(2, 3, 6))


def test_invalid_expert_ids_are_refused_by_the_thread(tmp_path):
    model = PlainModel(lambda logits: logits.topk(2, dim=-1).indices + 1)
    with pytest.raises(InputError, match=r"= 5: expected 0 <= id < 5"):
        run_twenty_passes(model, tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({}, "PlainModel has no module with children 'experts' and 'gate' or 'router': give routers"),
        ({"routers": {0: "gate"}}, "PlainModel has no module 'gate'"),
        ({"routers": {}}, "has no module"),
        ({"routers": NAMES}, "lacks the number of experts or top-k: give shape"),
        ({"routers": NAMES, "shape": ModelShape(2, 5)}, "shape.top_k = None"),
        ({"routers": NAMES, "shape": ModelShape(1, 5, 2)}, r"shape has 1 MoE layers None: the routers are of \(3, 7\)"),
        ({"routers": NAMES, "shape": ModelShape(2, 5, 2, moe_layer_ids=(0, 1))}, r"the routers are of \(3, 7\)"),
    ],
)
def test_models_without_the_required_shape_are_refused(words, message, tmp_path):
    with pytest.raises(InputError, match=message), record(PlainModel(), tmp_path / "a.parquet", **words):
        pytest.fail("the block must not run")


def test_two_routers_of_a_layer_are_refused(tmp_path):
    block = torch.nn.ModuleDict({"experts": torch.nn.Identity(), "gate": torch.nn.Identity()})
    model = torch.nn.ModuleDict({"a": torch.nn.ModuleList([block]), "b": torch.nn.ModuleList([block])})
    twin = torch.nn.ModuleDict({"experts": torch.nn.Identity(), "gate": torch.nn.Identity()})
    model["b"][0] = twin
    with pytest.raises(InputError, match=r"routers a\.0\.gate and b\.0\.gate are both of layer 0"):
        find_routers(model)
    with pytest.raises(InputError, match="expected a layer number in its name"):
        find_routers(twin)


def test_long_recordings_are_written_in_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr("eplb_traces.recorder.recorder._IDS_PER_CHUNK", 50)  # 24 ids a pass: three passes a chunk
    model = PlainModel()
    passes = [torch.randn(2, 3, 6) for _ in range(40)]
    with record(model, tmp_path / "a.parquet", routers=NAMES, shape=SHAPE):
        for hidden in passes:
            model(hidden)
    columns = joined(read_trace(tmp_path / "a.parquet"))
    assert columns["step"].tolist() == np.repeat(np.arange(40), 6).tolist()
    logits = model.routers[1].linear(torch.cat(passes)).detach().reshape(-1, 5).numpy()
    np.testing.assert_array_equal(columns["expert_ids"][:, 1], np.argsort(-logits, axis=1)[:, :2])


def test_without_torch_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with (
        pytest.raises(MissingExtraError, match="needs the extra 'record'"),
        record(None, tmp_path / "a.parquet"),
    ):
        pytest.fail("the block must not run")


def test_groups_that_the_router_does_not_use_are_no_groups_of_the_model(models, monkeypatch):
    model = models("deepseek_v2")
    routers = find_routers(model)
    assert shape_of_model(model, routers, None).num_expert_groups == 4
    monkeypatch.setattr(model.config, "topk_method", "greedy")  # as in DeepSeek-V2-Lite
    shape = shape_of_model(model, routers, None)
    assert (shape.num_expert_groups, shape.top_k_groups) == (1, None)
