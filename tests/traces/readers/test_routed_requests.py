"""The ids that vLLM and SGLang return with a request, in every wrapping."""

import base64
import io
import json

import numpy as np
import pytest

from eplb_traces import InputError, ModelShape, read_load, read_trace
from tests.traces.examples import SMALL, joined, random_ids

# Four hidden layers, of which 1 and 3 are MoE layers.
SHAPE = ModelShape(2, 8, 3, 2, 2, moe_layer_ids=(1, 3), num_hidden_layers=4)


def request_ids(num_tokens, seed=0):
    """[t, 4, 3] with zeros for the dense layers, as both engines return them."""
    ids = np.zeros((num_tokens, 4, 3), dtype=np.int32)
    ids[:, [1, 3]] = random_ids(np.random.default_rng(seed), num_tokens, SMALL)
    return ids


def npy(array):
    memory = io.BytesIO()
    np.save(memory, array)
    return memory.getvalue()


def encoded(array, dialect):
    content = npy(array) if dialect == "vllm" else array.astype("<i4").tobytes()
    return base64.b64encode(content).decode()


def answer(text, dialect):
    """What the servers send."""
    if dialect == "vllm":
        return {"id": "x", "choices": [{"index": 0, "text": "so\u2028said", "routed_experts": text}]}
    return {"text": "so\u2028said", "meta_info": {"routed_experts": text, "id": "x"}}


FIRST, SECOND = request_ids(5), request_ids(3, seed=1)


def wrapped(dialect, wrapping):
    texts = [encoded(ids, dialect) for ids in (FIRST, SECOND)]
    if wrapping == "base64":
        return "\n".join(texts) + "\n"
    answers = [answer(text, dialect) for text in texts]
    return (
        json.dumps(answers, indent=1)
        if wrapping == "json"
        else "\n".join(json.dumps(one, ensure_ascii=False) for one in answers)
    )


@pytest.mark.parametrize("dialect", ["vllm", "sglang_routed"])
@pytest.mark.parametrize("wrapping", ["base64", "json", "jsonl"])
def test_every_wrapping_gives_the_same_requests(tmp_path, dialect, wrapping):
    path = tmp_path / f"answers.{wrapping}"
    path.write_text(wrapped(dialect, wrapping), encoding="utf-8")
    told = None if dialect == "vllm" or wrapping != "base64" else dialect  # raw base64 looks like anything
    trace = read_trace(path, format=told, shape=SHAPE)
    assert trace.shape == SHAPE
    columns = joined(trace)
    np.testing.assert_array_equal(columns["expert_ids"], np.concatenate([FIRST, SECOND])[:, [1, 3]])
    assert columns["request"].tolist() == [0] * 5 + [1] * 3
    assert columns["step"].tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert read_load(path, format=told, shape=SHAPE) == trace.load()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_vllm_arrays_say_their_layers_themselves(tmp_path, dtype):
    np.save(tmp_path / "a.npy", FIRST.astype(dtype))
    for told in (None, "vllm"):
        trace = read_trace(tmp_path / "a.npy", 8, format=told, num_hidden_layers=4)
        assert trace.shape == ModelShape(2, 8, 3, moe_layer_ids=(1, 3), num_hidden_layers=4)
        np.testing.assert_array_equal(joined(trace)["expert_ids"], FIRST[:, [1, 3]])
    loads = [read_load(tmp_path / "a.npy", num_experts=8, num_hidden_layers=4, format=told) for told in (None, "vllm")]
    assert loads[0] == loads[1] == read_load(tmp_path / "a.npy", num_experts=8, format="vllm")
    with pytest.raises(InputError, match=r"may be \[tokens, layers, top-k\] or .*--hidden-layers.*--from vllm"):
        read_trace(tmp_path / "a.npy", 8)


def test_raw_bytes_are_read_with_hidden_layers_alone(tmp_path):
    (tmp_path / "a.bin").write_bytes(FIRST.tobytes())
    trace = read_trace(tmp_path / "a.bin", format="sglang_routed", num_experts=8, top_k=3, num_hidden_layers=4)
    assert trace.shape.moe_layer_ids == (1, 3)
    np.testing.assert_array_equal(joined(trace)["expert_ids"], FIRST[:, [1, 3]])
    without_dense = FIRST[:, [1, 3]]
    (tmp_path / "a.bin").write_bytes(without_dense.tobytes())
    trace = read_trace(tmp_path / "a.bin", format="sglang_routed", shape=ModelShape(2, 8, 3))
    np.testing.assert_array_equal(joined(trace)["expert_ids"], without_dense)


def test_tokens_that_were_not_computed_are_left_out_and_said(tmp_path, caplog):
    ids = FIRST.copy()
    ids[:2] = 0  # a cached prefix
    ids[4] = -1
    np.save(tmp_path / "a.npy", ids)
    columns = joined(read_trace(tmp_path / "a.npy", 8, num_hidden_layers=4))
    assert columns["step"].tolist() == [2, 3]
    assert "3 tokens have no choice in any layer, as where a prefix was cached: left out" in caplog.text


def test_with_one_choice_a_zero_is_a_choice(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[[0], [0]], [[0], [1]]]))
    assert joined(read_trace(tmp_path / "a.npy", 2, format="vllm"))["expert_ids"].tolist() == [[[0], [0]], [[0], [1]]]


@pytest.mark.parametrize(
    ("change", "words", "message"),
    [
        (lambda ids: ids[:, 1], {}, r"int32 of shape \(5, 3\): expected integers \[tokens, layers, top-k\]"),
        (lambda ids: ids.astype(float), {}, r"float64 of shape \(5, 4, 3\): expected integers"),
        (lambda ids: ids[:0], {}, r"of shape \(0, 4, 3\): expected integers"),
        (lambda ids: ids * 0, {}, r"every count is zero: an empty recording \(4 layers\)"),
        (lambda ids: np.where(ids, ids + 6, 0), {}, r"expert_ids\[token 0, layer \d\] = \d+: expected 0 <= id < 8"),
        (lambda ids: np.where(ids, 3, 0), {}, "expert 3 is there twice"),
        (lambda ids: ids, {"shape": None}, "does not say how many experts there are: give num_experts"),
        (lambda ids: ids, {"shape": ModelShape(2, 8, 2)}, "top_k = 2: the file has 3"),
        (
            lambda ids: ids,
            {"shape": ModelShape(3, 8)},
            "num_layers = 3: the file has 2",
        ),
        (
            lambda ids: ids,
            {"shape": ModelShape(2, 8, moe_layer_ids=(3, 4))},
            "moe_layer_ids = 3-4, 2 layers: the file has 4 rows",
        ),
        (lambda ids: ids, {"shape": SHAPE, "num_experts": 9}, "num_experts = 9: the model has 8"),
        (lambda ids: np.array([{}]), {}, "not a plain .npy file: Object arrays cannot be loaded"),
    ],
)
def test_wrong_vllm_arrays_are_named(tmp_path, change, words, message):
    np.save(tmp_path / "a.npy", change(FIRST), allow_pickle=True)
    with pytest.raises(InputError, match=rf"a\.npy: .*{message}"):
        read_trace(tmp_path / "a.npy", format="vllm", **({"shape": ModelShape(2, 8)} | words))


@pytest.mark.parametrize("dialect", ["vllm", "sglang_routed"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("k05VTVBZ!", r"line 1: not base64"),
        ("{}", "no string under a key 'routed_experts'"),
        ('{"routed_experts": 3}', "no string under a key 'routed_experts'"),
        ('{"routed_experts": "k05VTVBZ!"}', r"\$.routed_experts: not base64"),
        ('{"a": [{"routed_experts": "AAAA"}]}', r"\$.a\[0\].routed_experts: "),
        ('{"id": 1}\n{', "line 2: not JSON"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_wrong_texts_are_named(tmp_path, dialect, text, message):
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(InputError, match=rf"a\.txt: .*{message}"):
        read_trace(tmp_path / "a.txt", format=dialect, shape=SHAPE)


@pytest.mark.parametrize(
    ("content", "shape", "message"),
    [
        (FIRST.tobytes(), None, "raw ids do not say how many layers and choices there are: give num_hidden_layers"),
        (FIRST.tobytes(), ModelShape(4, 8), "raw ids do not say how many layers"),
        (FIRST.tobytes()[:-4], SHAPE, "has 236 bytes: expected a multiple of 48, 4 layers x top-3 x 4 bytes"),
        (FIRST.tobytes(), ModelShape(7, 8, 3), "expected a multiple of 84, 7 layers x top-3"),
        (FIRST.astype("<i8").tobytes(), SHAPE, "layer 2, not among them, has tokens in the file"),
        (np.where(FIRST, FIRST + 6, 0).tobytes(), SHAPE, r"= \d+: expected 0 <= id < 8"),
    ],
)
def test_wrong_raw_ids_are_named(tmp_path, content, shape, message):
    (tmp_path / "a.bin").write_bytes(content)
    with pytest.raises(InputError, match=rf"a\.bin: .*({message})"):
        read_trace(tmp_path / "a.bin", format="sglang_routed", shape=shape)


def test_requests_of_two_models_are_not_one_trace(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(encoded(ids, "vllm") for ids in (FIRST, SECOND[:, :, :2])))
    with pytest.raises(InputError, match=r"line 2: has layers and top-k \(4, 2\): expected \(4, 3\) as in the first"):
        read_trace(tmp_path / "a.txt", 8)
    (tmp_path / "a.txt").write_text(encoded(FIRST, "vllm") + "\n" + base64.b64encode(npy(FIRST)[:-8]).decode())
    with pytest.raises(InputError, match=r"line 2: not a plain \.npy file: its header says"):
        read_trace(tmp_path / "a.txt", 8)


def test_ids_are_not_taken_for_a_load(tmp_path):
    ids = random_ids(np.random.default_rng(0), 10, SMALL)
    np.save(tmp_path / "a.npy", ids)
    with pytest.raises(InputError, match=r"uint16 of shape \(10, 2, 3\) .* looks like expert ids .*: give num_experts"):
        read_load(tmp_path / "a.npy")
    counted = read_load(tmp_path / "a.npy", num_experts=8, moe_layer_ids=(0, 1))
    assert counted.tokens.sum() == ids.size
    as_said = read_load(tmp_path / "a.npy", num_experts=3)  # then it is a load of three experts
    np.testing.assert_array_equal(as_said.tokens, ids)
    np.save(tmp_path / "a.npy", ids.astype(float))
    with pytest.raises(InputError, match=r"float64 .* looks like expert ids"):
        read_load(tmp_path / "a.npy")
    np.save(tmp_path / "a.npy", np.zeros((20, 2, 3), dtype=int))
    with pytest.raises(InputError, match="an empty recording"):
        read_load(tmp_path / "a.npy")
    for load in (ids + 5000, np.maximum(ids, 3)):
        np.save(tmp_path / "a.npy", load)
        np.testing.assert_array_equal(read_load(tmp_path / "a.npy").tokens, load)
