"""JSON as routing studies, loggers and engines write it: read as what its keys say, or refused by name."""

import contextlib
import json
import tracemalloc

import numpy as np
import pytest

from eplb_traces import InputError, ModelShape, read_load, read_trace
from eplb_traces.readers import ReadOptions, load_history, read
from tests.traces.examples import joined, random_ids

SHAPE = ModelShape(3, 16, 2)
RNG = np.random.default_rng(1)
IDS = random_ids(RNG, 12, SHAPE)
COUNTS = RNG.integers(100, 900, (3, 16))
LAYERS = (3, 10, 24)


def lines(path, records):
    (path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return path / "a.jsonl"


def records(layer="layer", ids="topk_ids", token="token_idx", request="req_id", name=int):
    """Two requests of six tokens; a record for each token and layer."""
    return [
        {
            layer: name(LAYERS[row]),
            ids: IDS[6 * r + t, row].tolist(),
            "weights": [0.5, 0.5],
            **({token: t} if token else {}),
            **({request: f"r{r}"} if request else {}),
        }
        for r in range(2)
        for t in range(6)
        for row in range(3)
    ]


@pytest.mark.parametrize(
    "names",
    [
        {},
        {"layer": "layer_id", "ids": "experts", "token": "token_id", "request": "request_id"},
        {"layer": "layer_idx", "ids": "expert_idx", "token": "token", "request": "request"},
        {"ids": "selected_experts", "token": None},
        {"name": "model.layers.{}.mlp.gate".format},
    ],
)
def test_records_under_the_names_that_tools_write_in_any_order(tmp_path, names):
    found = records(**names)
    if names.get("token", "") is not None:
        RNG.shuffle(found)
        found.sort(key=lambda record: str(record.get("req_id", record.get("request_id", record.get("request")))))
    trace = read_trace(lines(tmp_path, found), 16)
    assert trace.shape == ModelShape(3, 16, 2, moe_layer_ids=LAYERS)
    columns = joined(trace)
    np.testing.assert_array_equal(columns["expert_ids"], IDS)
    assert columns["step"].tolist() == [*range(6)] * 2
    assert columns["request"].tolist() == [0] * 6 + [1] * 6


def test_a_list_of_records_is_as_good_as_lines(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([{"num_experts": 16, "top_k": 2}, {"type": "start"}, *records()]))
    reading = read(tmp_path / "a.json")
    np.testing.assert_array_equal(joined(reading.content)["expert_ids"], IDS)
    assert "1 records without a layer left out" in reading.notes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r[1:], "request 'r0', token 0: layer 3 is missing, expected 2 choices"),
        (lambda r: [*r, r[4]], "line 37: request 'r0', token 1, layer 10 is there twice"),
        (lambda r: [{**r[0], "topk_ids": [1, 2, 3]}, *r[1:]], "layer 10 has 2 choices, expected 3"),
        (
            lambda r: [{**r[0], "topk_ids": [1, "x"]}, *r[1:]],
            r"line 1: topk_ids = \[1, 'x'\]: expected a list of expert",
        ),
        (lambda r: [{**r[0], "topk_ids": [1, 1]}, *r[1:]], "expert 1 is there twice"),
        (lambda r: [{**r[0], "topk_ids": [1, 16]}, *r[1:]], r"= 16: expected 0 <= id < 16; .*--ignore-ids"),
        (lambda r: [{**r[0], "layer": -1}, *r[1:]], "line 1: layer = -1: expected an integer >= 0"),
        (lambda r: [{**r[0], "layer_id": 3}, *r[1:]], "line 1: has layer and layer_id: expected one of them"),
        (lambda r: [*r[:3], {"layer": 3}], r"line 4: has the keys layer: expected a layer \(layer, .* and ids"),
        (lambda r: [*r, 3], "line 37: is a int: expected an object"),
    ],
)
def test_what_is_wrong_with_records_is_named(tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        read_trace(lines(tmp_path, change(records())), 16)


def test_lines_of_another_kind_show_their_keys(tmp_path):
    with pytest.raises(InputError, match="a JSON object with the keys prompt, answer"):
        read_load(lines(tmp_path, [{"prompt": 1, "answer": 2}, {"prompt": 1}]))


def test_nested_lists_under_routed_experts_are_requests(tmp_path):
    answers = [{"choices": [{"routed_experts": IDS[6 * r : 6 * r + 6].tolist()}]} for r in range(2)]
    trace = read_trace(lines(tmp_path, answers), 16)
    columns = joined(trace)
    np.testing.assert_array_equal(columns["expert_ids"], IDS)
    assert columns["request"].tolist() == [0] * 6 + [1] * 6
    answers[1]["choices"][0]["routed_experts"][2].pop()
    with pytest.raises(InputError, match=r"line 2.choices\[0\].routed_experts is ragged"):
        read_trace(lines(tmp_path, answers), 16)


@pytest.mark.parametrize("chunk", [1 << 9, 1 << 14, 1 << 22])  # less than an entry, some entries, the whole file
def test_a_load_history_is_read_entry_by_entry(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(load_history, "_CHUNK", chunk)
    loads = RNG.integers(100, 900, (40, 3, 160))
    history = [{"step": i, "logical_expert_load": load.tolist()} for i, load in enumerate(loads)]
    document = {"model": "x", "load_history": history, "more": [1]}
    path = tmp_path / "expert-load.json"
    path.write_text(json.dumps(document, indent=1))
    assert path.stat().st_size > 1 << 17
    np.testing.assert_array_equal(read_load(path).tokens, loads)
    path.write_text(json.dumps(document)[:-4000])
    with pytest.raises(InputError, match="not JSON"):
        read_load(path)
    history[2] = {"physical_expert_load": [[1]]}
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"\$.load_history\[2\]: has physical_expert_load: expected an object with"):
        read_load(path)
    history[2] = {"logical_expert_load": [[1, 2]]}
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"load_history\[2\]: .* has shape \(1, 2\): expected \(3, 160\)"):
        read_load(path)


def test_a_load_history_needs_less_than_three_times_the_memory_of_its_load(tmp_path, monkeypatch):
    monkeypatch.setattr(load_history, "_CHUNK", 1 << 16)
    path = tmp_path / "expert-load.json"
    path.write_text(json.dumps({"load_history": [{"logical_expert_load": [[1000 + i] * 64] * 20} for i in range(300)]}))
    tracemalloc.start()
    try:
        load = read_load(path)
        assert tracemalloc.get_traced_memory()[1] < 3 * load.tokens.nbytes
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(load.tokens[:, 7, 5], np.arange(1000, 1300))


def test_token_scores_of_esft_are_shares_of_layers_with_ids(tmp_path):
    shares = COUNTS / COUNTS.sum(axis=1, keepdims=True)
    scores = {str(layer): {str(e): s for e, s in enumerate(row)} for layer, row in zip(LAYERS, shares, strict=True)}
    path = tmp_path / "summary.json"
    path.write_text(json.dumps({"token_scores": dict(reversed(scores.items())), "gate_scores": {}}))
    reading = read(path)
    np.testing.assert_array_equal(reading.load().total, shares)
    assert reading.content.shape.moe_layer_ids == LAYERS
    assert "shares of tokens, rounded, not counts" in reading.notes
    del scores["10"]["4"]
    path.write_text(json.dumps({"token_scores": scores}))
    with pytest.raises(InputError, match=r"token_scores.10 has the experts .*: expected each one from 0 on"):
        read(path)


def test_ranked_profiles_give_counts_by_rank_or_by_id(tmp_path):
    path = tmp_path / "profile.json"
    order = np.argsort(-COUNTS, axis=1, kind="stable")
    by_rank = np.take_along_axis(COUNTS, order, axis=1)
    for counts in (by_rank, COUNTS):
        layers = [
            {"layer": layer, "ranked": r.tolist(), "counts": c.tolist()}
            for layer, r, c in zip(LAYERS, order, counts, strict=True)
        ]
        path.write_text(json.dumps({"layers": layers}))
        load = read_load(path)
        np.testing.assert_array_equal(load.total, COUNTS)
        assert load.shape.moe_layer_ids == LAYERS
    layers[1]["counts"] = layers[1]["counts"][1:] + layers[1]["counts"][:1]
    path.write_text(json.dumps({"layers": layers}))
    with pytest.raises(InputError, match=r"\$.layers\[1\]: counts do not fall in the order of ranked"):
        read_load(path)


ROW = "[[[1, 2]], [[3, 4]]]"


@pytest.mark.parametrize(
    ("name", "text", "key"),
    [
        ("a.json", '{"logical_count": [[1, 2]], "logical_count": [[9, 9]]}', "logical_count"),
        ("a.json", '{"token_scores": {"0": {"0": 1, "1": 5, "1": 7}}}', "1"),
        ("a.json", '{"ranked": [0, 1], "layer": 0, "counts": [9, 1], "counts": [5, 4]}', "counts"),
        (
            "a.json",
            '{"load_history": [{"logical_expert_load": [[1]], "logical_expert_load": [[2]]}]}',
            "logical_expert",
        ),
        ("a.json", '{"load_history": [{"logical_expert_load": [[1, 2]]}], "load_history": []}', "load_history"),
        ("a.jsonl", f'{{"routed_experts": {ROW}, "routed_experts": {ROW}}}', "routed_experts"),
        ("a.json", '{"routed_experts": "AAAA", "routed_experts": "BBBB"}', "routed_experts"),
        ("a.jsonl", '{"layer": 0, "layer": 1, "topk_ids": [0, 1]}', "layer"),
        ("a.jsonl", '{"record_type": "eplb_load_stats", "step": 1, "step": 2}', "step"),
    ],
)
def test_a_key_that_is_there_twice_is_refused_not_read_as_the_last(tmp_path, name, text, key):
    (tmp_path / name).write_text(text)
    options = ReadOptions(num_experts=16, top_k=1, num_hidden_layers=1)
    with pytest.raises(InputError, match=rf"{name}: .*the key '{key}\w*' is there twice in one object"):
        read(tmp_path / name, options)


def test_two_spellings_of_an_expert_or_a_layer_are_refused(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"token_scores": {"0": {"0": 1, "1": 5, "expert_1": 7}}}')
    with pytest.raises(InputError, match=r"\$.token_scores.0: expert 1 is there twice"):
        read(path)
    path.write_text('{"token_scores": {"0": {"0": 1}, "layer_0": {"0": 1}}}')
    with pytest.raises(InputError, match=r"\$.token_scores: layer 0 is there twice"):
        read(path)


def test_a_load_history_is_read_to_its_end(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"load_history": [{"logical_expert_load": [[1, 2]]}]')
    with pytest.raises(InputError, match="not JSON"):
        read(path)


@pytest.mark.parametrize("ids", [[10**30, 1], [-(10**30), 1]])
def test_an_id_beyond_64_bits_is_refused(tmp_path, ids):
    with pytest.raises(InputError, match=r"topk_ids = \[.*expected expert ids, integers up to 2\^53"):
        read_trace(lines(tmp_path, [{"layer": 0, "topk_ids": ids}]), 16)


def test_a_declared_top_k_is_compared_with_the_choices_before_anything_of_that_size_is_made(tmp_path):
    found = [{"top_k": 1 << 53, "num_experts": 16}, *({"layer": 0, "topk_ids": [1]} for _ in range(1000))]
    with pytest.raises(InputError, match="layer 0 has 1 choices, expected 9007199254740992"):
        read_trace(lines(tmp_path, found))


def test_lines_may_be_longer_than_what_shows_the_dialect(tmp_path):
    answers = [{"routed_experts": np.tile(IDS, (200, 1, 1)).tolist()} for _ in range(2)]
    assert len(json.dumps(answers[0])) > 1 << 16
    assert read_trace(lines(tmp_path, answers), 16).num_tokens == 2 * 200 * len(IDS)


def test_a_byte_order_mark_is_no_part_of_a_document(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf" + json.dumps({"logical_count": COUNTS.tolist()}).encode())
    np.testing.assert_array_equal(read_load(tmp_path / "a.json").tokens[0], COUNTS)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("seed", range(40))
def test_cut_and_changed_bytes_are_refused_or_read_but_never_a_bug(tmp_path, seed):
    """Mutations of every kind of text and array: nothing but InputError comes out."""
    rng = np.random.default_rng(seed)
    np.savez(tmp_path / "b.npz", load=COUNTS)
    np.save(tmp_path / "b.npy", COUNTS)
    (tmp_path / "b.json").write_text(json.dumps(COUNTS.tolist()))
    (tmp_path / "c.json").write_text(json.dumps({"load_history": [{"logical_expert_load": COUNTS.tolist()}] * 3}))
    (tmp_path / "d.json").write_text(json.dumps({"token_scores": {"1": {"0": 0.5, "1": 0.5}}}))
    lines(tmp_path, records())
    torch = pytest.importorskip("torch")
    torch.save(torch.from_numpy(COUNTS), tmp_path / "b.pt")
    for path in sorted(tmp_path.iterdir()):
        content = bytearray(path.read_bytes())
        for _ in range(10):
            changed = content.copy()
            for at in rng.integers(0, len(changed), rng.integers(1, 6)):
                changed[at] = rng.integers(0, 256) if rng.random() < 0.5 else rng.choice(list(b'[]{},:"0-9eE'))
            path.write_bytes(changed[: rng.integers(1, len(changed))] if rng.random() < 0.3 else changed)
            with contextlib.suppress(InputError):
                read(path, ReadOptions(num_experts=16 if rng.random() < 0.5 else None))
