"""Variations of JSON: records of tokens, nested lists, histories, profiles and statistics of engines."""

import base64
import io
import json

import numpy as np

from tests.traces.variations.arrays import Model
from tests.traces.variations.variation import Variation

LAYERS = ["layer", "layer_id", "layer_idx"]
IDS = ["topk_ids", "experts", "expert_idx", "expert_ids", "selected_experts"]
TOKENS = ["token_idx", "token", "position", "token_index"]
REQUESTS = ["req_id", "request_id", "rid", "seq_id"]
LABELS = ["{}", "layer_{}", "model.layers.{}.mlp.gate"]


def _lines(*records):
    return "".join(json.dumps(record) + "\n" for record in records)


def _either(rng, records):
    """Name and text: lines, or one list."""
    if rng.random() < 0.6:
        return "a.jsonl", _lines(*records)
    return "a.json", json.dumps(records, indent=int(rng.integers(2)) or None)


def token_records(model):
    rng, chosen = model.rng, model.choices()[:40]
    layer, ids, token = (str(rng.choice(names)) for names in (LAYERS, IDS, TOKENS))
    request, label, has_token = str(rng.choice(REQUESTS)), str(rng.choice(LABELS)), rng.random() < 0.7
    records = [
        {
            layer: model.ids[m] if label == "{}" else label.format(model.ids[m]),
            ids: chosen[t, m].tolist(),
            **({token: t} if has_token else {}),
            **({request: "r0"} if has_token else {}),
            "weights": [0.5] * model.top_k,
        }
        for t in range(len(chosen))
        for m in range(model.num_layers)
    ]
    if has_token:
        records = [records[i] for i in rng.permutation(len(records))]
    options, meta = model.told("num_experts", "moe_layer_ids"), {"num_experts": model.num_experts, "top_k": model.top_k}
    says = rng.random() < 0.4
    if says:
        records.insert(0, meta)
    if rng.random() < 0.2:
        del records[-1][ids]
        return *_either(rng, records), None, None, options, False
    return *_either(rng, records), model.counted(chosen), model.ids, options, says or "num_experts" in options


def routed_lists(model):
    chosen = model.choices()
    ids = tuple(range(model.num_layers))
    stem = int(model.rng.integers(2)) if model.num_layers > 1 else 0
    lists = np.pad(chosen, ((0, 0), (stem, 0), (0, 0)))
    options = model.told("num_experts")
    parts = np.array_split(lists, 2) if len(lists) > 1 else [lists]
    answers = [{"id": i, "choices": [{"routed_experts": part.tolist()}]} for i, part in enumerate(parts)]
    chosen_in_all = model.top_k > 1 and stem == 0
    return (
        *_either(model.rng, answers),
        model.counted(chosen),
        tuple(i + stem for i in ids),
        options,
        chosen_in_all and len(options) == 1,
    )


def routed_text(model):
    """vLLM's .npy in base64."""
    chosen, file = model.choices(), io.BytesIO()
    np.save(file, chosen.astype(model.rng.choice(["u1", "<i2", "<i4"])))
    text = base64.b64encode(file.getvalue()).decode()
    options = model.told("num_experts")
    return (
        *_either(model.rng, [{"routed_experts": text}]),
        model.counted(chosen),
        tuple(range(model.num_layers)),
        options,
        model.top_k > 1 and len(options) == 1,
    )


def history(model):
    load = model.load()
    entries = [{"step": i, "logical_expert_load": of.tolist()} for i, of in enumerate(load)]
    options = model.told("num_experts", "moe_layer_ids")
    text = json.dumps({"model": "x", "load_history": entries}, indent=int(model.rng.integers(2)) or None)
    return "a.json", text, load, model.ids if "moe_layer_ids" in options else None, options, True


def scores(model):
    load = model.load()[:1]
    shares = load / load.sum(axis=2, keepdims=True)
    of = {str(layer): {str(e): s for e, s in enumerate(shares[0, m].tolist())} for m, layer in enumerate(model.ids)}
    of = {layer: of[layer] for layer in model.rng.permutation(sorted(of))}
    return "a.json", json.dumps({"token_scores": of}), shares, model.ids, model.told("num_experts"), True


def profiles(model):
    load = model.load()[:1]
    order = np.argsort(-load[0], axis=1, kind="stable")
    by_rank = model.rng.random() < 0.5
    of = [
        {
            "layer": layer,
            "ranked": order[m].tolist(),
            "counts": load[0, m, order[m] if by_rank else slice(None)].tolist(),
        }
        for m, layer in enumerate(model.ids)
    ]
    return "a.json", json.dumps({"layers": of}), load, model.ids, model.told("num_experts"), False


def sglang(model):
    load = model.load()
    counts = load if model.rng.random() < 0.5 or model.num_windows > 1 else load[0]
    stem = int(model.rng.integers(2)) if model.num_layers > 1 else 0
    counts = np.pad(counts, ((0, 0),) * (counts.ndim - 2) + ((stem, 0), (0, 0)))
    ids = tuple(range(stem, stem + model.num_layers))
    return (
        "a.json",
        json.dumps({"logical_count": counts.tolist(), "rank": 0}),
        load,
        ids,
        model.told("num_experts"),
        True,
    )


def vllm_stats(model):
    rng, extra = model.rng, model.num_experts // 4
    maps = [
        np.stack(
            [rng.permutation(np.arange(model.num_experts + extra) % model.num_experts) for _ in range(model.num_layers)]
        )
        for _ in range(model.num_windows)
    ]
    slots = [rng.integers(1, 900, logical.shape) for logical in maps]
    truth = np.zeros((model.num_windows, model.num_layers, model.num_experts))
    for w, (logical, counts) in enumerate(zip(maps, slots, strict=True)):
        for m in range(model.num_layers):
            np.add.at(truth[w, m], logical[m], counts[m])
    records = [
        {
            "record_type": "eplb_load_stats",
            "version": 1,
            "step": w,
            "num_ranks": 2,
            "expert_load": slots[w].tolist(),
            "p2l_map": maps[w].tolist(),
        }
        for w in range(model.num_windows)
    ]
    return "a.jsonl", _lines({"record_type": "eplb_start"}, *records), truth, None, model.told("num_experts"), True


def bare_lists(model):
    load = model.load()[:1]
    options = model.told("num_experts")
    return "a.json", json.dumps(load[0].tolist()), load, None, options, False


def unknown(model):
    load = model.load()[0].tolist()
    documents = [
        {"counts": load},
        {"0": load[0]},
        {"load_history": [{"physical_expert_load": load}]},
        {"routed_experts": [{"a": 1}]},
        {"layer": 3, "tokens": 5},
        {"prompt": 1},
        [],
        {},
        [{"layer": 1}],
    ]
    document = documents[model.rng.integers(len(documents))]
    return *_either(model.rng, [document]), None, None, model.told("num_experts"), False


MAKERS = [
    token_records,
    token_records,
    routed_lists,
    routed_text,
    history,
    scores,
    profiles,
    sglang,
    vllm_stats,
    bare_lists,
    unknown,
]


def record_variation(rng):
    """A JSON file of random content."""
    model = Model(rng, most_layers=6)
    make = MAKERS[rng.integers(len(MAKERS))]
    name, text, truth, layer_ids, options, must_be_read = make(model)
    if "moe_layer_ids" in options and layer_ids is None:
        layer_ids = model.ids
    return Variation(make.__name__, name, lambda path: path.write_text(text), truth, layer_ids, options, must_be_read)
