"""Variations of arrays: what they hold, their axes, names, types, byte orders and files."""

import json

import numpy as np

from tests.traces.variations.variation import Variation

NAMES = ["load", "tokens", "whatever", "expert_load", "selected_experts", "topk_ids", "expert_ids", "arr_0", "x"]
COUNT_TYPES = ["<i4", ">i4", "<i8", ">i8", "<u2", ">u4", "<u8", "<f4", ">f8", "f8"]
ID_TYPES = ["u1", "<i2", ">i2", "<i4", ">i8", "<u2", "f4", ">f8"]
EXPERTS = [8, 16, 32, 60, 64, 72]


class Model:
    """A model, a load of it and the choices of some tokens."""

    def __init__(self, rng, most_layers=27):
        self.rng = rng
        self.num_experts = int(rng.choice(EXPERTS))
        self.num_layers = min(most_layers, int(rng.choice([1, 2, 3, 4, 6, 12, 27])))
        self.ids = tuple(np.sort(rng.choice(3 * self.num_layers, self.num_layers, replace=False)).tolist())
        self.num_windows = int(rng.choice([1, 1, 3]))
        self.top_k = int(rng.integers(1, 5))

    def load(self):
        """[W, L, E] every layer with the same tokens, or not."""
        size = (self.num_windows, self.num_layers, self.num_experts)
        share = self.rng.dirichlet(np.ones(self.num_experts), size[:2])
        tokens = self.rng.choice([200, 20000]) * self.rng.integers(1, 5, (self.num_windows, 1))
        if self.rng.random() < 0.5:
            tokens = self.rng.integers(100, 30000, size[:2])
        return np.array(
            [
                [self.rng.multinomial(t, s) for t, s in zip(*of, strict=True)]
                for of in zip(np.broadcast_to(tokens, size[:2]), share, strict=True)
            ]
        )

    def choices(self):
        """[T, L, K] the ids of some tokens, first choice first."""
        num_tokens = int(self.rng.choice([5, 40, 200]))
        skew = self.rng.random((self.num_layers, self.num_experts))
        keys = self.rng.random((num_tokens, self.num_layers, self.num_experts)) * skew
        return np.argsort(-keys, axis=2)[:, :, : self.top_k]

    def counted(self, ids):
        """[1, L, E] how often each expert was chosen."""
        counts = [np.bincount(ids[:, layer].ravel(), minlength=self.num_experts) for layer in range(ids.shape[1])]
        return np.array([counts], dtype=float)

    def told(self, *names):
        """A random part of what a caller can say; the layers half of the time."""
        options = {"num_experts": self.num_experts, "top_k": self.top_k, "moe_layer_ids": self.ids}
        return {name: options[name] for name in names if self.rng.random() < 0.6}


def counts(model):
    load = model.load()
    options = model.told("num_experts", "moe_layer_ids")
    array = load[0] if model.num_windows == 1 else load
    is_square = model.num_layers == model.num_experts
    return "counts", array, load, options, "num_experts" in options and not is_square


def counts_after_a_dense_stem(model):
    load = model.load()
    model.num_hidden = model.num_layers + 1
    array = np.pad(load, ((0, 0), (1, 0), (0, 0)))
    model.ids = tuple(range(1, model.num_hidden))
    return "stem", array, load, {"num_experts": model.num_experts, "num_hidden_layers": model.num_hidden}, False


def experts_first(model):
    load = model.load()
    options = model.told("num_experts", "moe_layer_ids")
    return "experts first", load.swapaxes(1, 2) if model.num_windows > 1 else load[0].T, load, options, False


def layers_first(model):
    model.num_windows = 3
    model.num_layers = max(2, model.num_layers)
    share = model.rng.dirichlet(np.ones(model.num_experts), (3, model.num_layers))
    load = np.array([[model.rng.multinomial(500 * (w + 1), s) for s in of] for w, of in enumerate(share)])
    return "layers first", load.swapaxes(0, 1), load, model.told("num_experts", "moe_layer_ids"), False


def slots(model):
    extra = model.num_experts // 4
    logical = np.stack(
        [
            model.rng.permutation(np.arange(model.num_experts + extra) % model.num_experts)
            for _ in range(model.num_layers)
        ]
    )
    slots = model.rng.integers(0, 900, (1, *logical.shape))
    slots[:, :, 0] += 1
    truth = np.zeros((1, model.num_layers, model.num_experts))
    for layer, row in enumerate(logical):
        np.add.at(truth[0, layer], row, slots[0, layer])
    options = model.told("num_experts")
    if model.rng.random() < 0.7:
        options["recorded_under"] = logical
        return "slots", slots[0], truth, options, True
    return "slots", slots[0], None if "num_experts" in options else "skip", options, False


def ids(model):
    chosen = model.choices()
    truth, options = model.counted(chosen), model.told("num_experts", "moe_layer_ids")
    array = chosen if model.rng.random() < 0.6 else chosen.swapaxes(0, 1)
    says_all = len(options) == 2 and chosen.shape[0] != chosen.shape[1] and model.top_k > 1
    return "ids", array, truth, options, says_all and chosen.shape[0] != model.num_experts


def ids_with_a_shared_expert(model):
    chosen = model.choices()
    fused = np.concatenate([chosen, np.full((*chosen.shape[:2], 1), model.num_experts)], axis=2)
    how = {"ignore_ids": (model.num_experts,)} if model.rng.random() < 0.5 else {"ignore_columns": (model.top_k,)}
    options = {"num_experts": model.num_experts, "moe_layer_ids": model.ids}
    if model.rng.random() < 0.7:
        return "fused", fused, model.counted(chosen), options | how, False
    return "fused", fused, None, options, False


def ids_of_one_layer(model):
    model.num_layers, model.ids = 1, model.ids[:1]
    chosen = model.choices()
    return "ids of a layer", chosen[:, 0], model.counted(chosen), model.told("num_experts", "moe_layer_ids"), False


def logits(model):
    size = (int(model.rng.choice([5, 40, 200])), model.num_layers, model.num_experts)
    values = model.rng.normal(size=size).astype("f4")
    chosen = np.argsort(-values, axis=2)[:, :, : model.top_k]
    options = model.told("num_experts", "top_k", "moe_layer_ids")
    array = values if model.rng.random() < 0.5 else values.swapaxes(0, 1)
    return "logits", array, model.counted(chosen), options, len(options) == 3 and size[0] != size[1]


def no_load(model):
    rng, size = model.rng, (max(model.num_layers, 2), model.num_experts)
    shares = rng.dirichlet(np.ones(size[1]), (40, size[0])).astype("f4")
    extra = [np.concatenate([rng.permutation(size[1]), rng.choice(size[1], 4, replace=False)]) for _ in range(size[0])]
    arrays = {
        "probabilities": shares,
        "scores": rng.random((40, *size)).astype("f4"),
        "weights": np.sort(shares, axis=2)[:, :, -4:] / np.sort(shares, axis=2)[:, :, -4:].sum(2, keepdims=True) * 2.5,
        "pattern": rng.integers(0, 2, (3, *size)),
        "transitions": rng.integers(0, 900, (3, size[1], size[1])),
        "ranking": np.argsort(rng.random(size), axis=1),
        "placement": np.stack(extra),
        "replicas": 1 + np.stack([rng.permutation(np.arange(size[1]) < size[1] // 4) for _ in range(size[0])]),
        "infinite": np.full(size, np.inf),
        "negative": rng.integers(-900, 900, size),
        "text": np.full(size, "a"),
    }
    kind = str(rng.choice(sorted(arrays)))
    return kind, arrays[kind], None, model.told("num_experts") if kind not in ("transitions", "weights") else {}, False


MAKERS = [
    *(counts, counts, counts_after_a_dense_stem, experts_first, layers_first, slots, ids, ids),
    *(ids_with_a_shared_expert, ids_of_one_layer, logits, no_load, no_load),
]


def array_variation(rng):
    """An array of random content in a random file."""
    model = Model(rng)
    kind, array, truth, options, must_be_read = MAKERS[rng.integers(len(MAKERS))](model)
    if isinstance(truth, str):  # nothing tells slots from experts
        return array_variation(rng)
    layer_ids = model.ids if "moe_layer_ids" in options or kind == "stem" else None
    types = {
        "counts": COUNT_TYPES,
        "experts first": COUNT_TYPES,
        "layers first": COUNT_TYPES,
        "slots": COUNT_TYPES,
        "stem": COUNT_TYPES,
        "ids": ID_TYPES,
        "fused": ID_TYPES,
        "ids of a layer": ID_TYPES,
    }.get(kind)
    if types is not None:
        array = array.astype(rng.choice(types))
    called = str(rng.choice(NAMES))
    name, write = _file(rng, array, called)
    if name.endswith(".npz") and rng.random() < 0.3 and truth is not None and kind != "stem":
        write = _npz(called, array, str(rng.choice(["moe_layer_ids", "layer_ids"])), model.ids)
        layer_ids = model.ids
    is_called_ids = name.endswith(("npz", "pth", "safetensors")) and called in ("topk_ids", "expert_ids")
    return Variation(kind, name, write, truth, layer_ids, options, must_be_read and not is_called_ids)


def _npz(name, array, ids_name=None, ids=()):
    beside = {} if ids_name is None else {ids_name: np.array(ids)}
    return lambda path: np.savez(path, **{name: array}, **beside)


def _file(rng, array, name):
    """A name, and a function that writes the array."""
    native = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("=")))
    kind = str(rng.choice(["npy", "npz", "json", "pt", "pth", "safetensors"]))
    if array.dtype.kind == "U" and kind in ("pt", "pth", "safetensors"):
        kind = "npy"
    if native.dtype.itemsize == 8 and native.dtype.kind == "f" and not np.isfinite(native).all() and kind == "json":
        kind = "npy"

    def torch_file(path):
        import torch

        tensor = torch.from_numpy(native if native.dtype.kind != "u" else native.astype(np.int64))
        torch.save({name: tensor} if kind == "pth" else tensor, path)

    def safetensors(path):
        from safetensors.numpy import save_file

        save_file({name: native}, path)

    writers = {
        "npy": lambda path: np.save(path, array if rng.random() < 0.5 else np.asfortranarray(array)),
        "npz": _npz(name, array),
        "json": lambda path: path.write_text(json.dumps(array.tolist())),
        "pt": torch_file,
        "pth": torch_file,
        "safetensors": safetensors,
    }
    return f"a.{kind}", writers[kind]
