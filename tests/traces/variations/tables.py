"""Variations of tables: form, names and order of columns, ranks, windows, ids, separators, compression, Parquet."""

import gzip

import numpy as np

from tests.traces.variations.arrays import Model
from tests.traces.variations.variation import Variation

LAYERS = ["layer", "layer_id", "layer_idx", "Layer", "Layer ID", "LAYER_INDEX"]
EXPERTS = ["expert", "expert_id", "expert_idx", "Expert", "logical_expert"]
TOKENS = ["tokens", "count", "token_count", "load", "hotness", "freq", "Tokens", "hits"]
RANKS = ["rank", "ep_rank", "gpu", "device_id", "Rank"]
LABELS = ["{}", "layer_{}", "model.layers.{}.mlp.gate", "blk.{}.ffn_gate"]
EXTRA = {"fraction": 0.25, "model": "deepseek", "phase": "pre,fill", "note": ""}


class Table:
    """Names of columns, and rows of cells."""

    def __init__(self, rng, names, rows):
        self.rng, self.names, self.rows = rng, names, rows

    def add(self, at, name, cells):
        self.names.insert(at, name)
        for row, cell in zip(self.rows, cells, strict=True):
            row.insert(at, cell)

    def shuffle_rows(self):
        self.rows = [self.rows[i] for i in self.rng.permutation(len(self.rows))]

    def shuffle_columns(self):
        order = self.rng.permutation(len(self.names))
        self.names = [self.names[i] for i in order]
        self.rows = [[row[i] for i in order] for row in self.rows]

    def add_others(self):
        for name in self.rng.permutation(sorted(EXTRA))[: self.rng.integers(3)]:
            self.add(int(self.rng.integers(len(self.names) + 1)), str(name), [EXTRA[name]] * len(self.rows))


def _by_rank(model, load):
    """[(rank, window, part of the load [L, E])]; one rank, None, for every window half of the time."""
    if model.rng.random() < 0.5:
        return [(None, w, of) for w, of in enumerate(load)]
    first = model.rng.binomial(load.astype(int), 0.4)
    return [(rank, w, part[w]) for rank, part in ((0, first), (3, load - first)) for w in range(len(load))]


def _finished(model, table, parts, rows_of_part):
    """Columns of ranks and windows, other columns, and a random order."""
    rng = model.rng
    ranks, windows = zip(
        *[(rank, w) for (rank, w, _), n in zip(parts, rows_of_part, strict=True) for _ in range(n)], strict=True
    )
    if ranks[0] is not None:
        table.add(int(rng.integers(len(table.names) + 1)), str(rng.choice(RANKS)), ranks)
    if model.num_windows > 1:
        name, step = [("window", 1), ("step", 10), ("iteration", 7)][rng.integers(3)]
        table.add(0, name, [w * step for w in windows])
    table.add_others()
    table.shuffle_rows()
    if rng.random() < 0.3:
        table.shuffle_columns()


def long(model):
    rng, load = model.rng, model.load().astype(float)
    if rng.random() < 0.5:
        load[rng.random(load.shape) < 0.3] = 0
        load[:, :, 0] += 1
    parts, is_sparse = _by_rank(model, load), rng.random() < 0.5
    of_parts = [
        [[model.ids[m], e, tokens] for (m, e), tokens in np.ndenumerate(part) if tokens or not is_sparse]
        for _, _, part in parts
    ]
    names = [str(rng.choice(LAYERS)), str(rng.choice(EXPERTS)), str(rng.choice(TOKENS))]
    table = Table(rng, names, [row for rows in of_parts for row in rows])
    _finished(model, table, parts, [len(rows) for rows in of_parts])
    options = model.told("num_experts", "moe_layer_ids")
    return table, load, options, "num_experts" in options


def wide(model):
    rng, load = model.rng, model.load().astype(float)
    parts, label = _by_rank(model, load), str(rng.choice(LABELS))
    stem, order = str(rng.choice(["", "e", "expert_", "Expert ", "expert-"])), rng.permutation(model.num_experts)
    rows = [
        [_label(label, model.ids[m]), *part[m, order].tolist()] for _, _, part in parts for m in range(model.num_layers)
    ]
    names = [str(rng.choice([*LAYERS, "name", "module"])), *(f"{stem}{e}" for e in order)]
    table = Table(rng, names, rows)
    _finished(model, table, parts, [model.num_layers] * len(parts))
    return table, load, model.told("num_experts", "moe_layer_ids"), True


def transposed(model):
    rng, load = model.rng, model.load()[:1].astype(float)
    label, order = (
        str(rng.choice(["layer_{}", "layer {}", "model.layers.{}.mlp", "{}"])),
        rng.permutation(model.num_layers),
    )
    names = [str(rng.choice(EXPERTS)), *(label.format(model.ids[m]) for m in order)]
    table = Table(rng, names, [[e, *load[0, order, e].tolist()] for e in range(model.num_experts)])
    table.shuffle_rows()
    return table, load, model.told("num_experts", "moe_layer_ids"), True


def tokens(model):
    rng, chosen = model.rng, model.choices()[:40]
    in_one = rng.random() < 0.5
    rows = [
        [t, model.ids[m], *([chosen[t, m].tolist()] if in_one else chosen[t, m].tolist())]
        for t in range(len(chosen))
        for m in range(model.num_layers)
    ]
    names = [str(rng.choice(["experts", "topk_ids"]))] if in_one else [f"expert_{k}" for k in range(model.top_k)]
    table = Table(rng, [str(rng.choice(["token", "token_idx", "position"])), str(rng.choice(LAYERS)), *names], rows)
    table.shuffle_rows()
    options = model.told("num_experts", "moe_layer_ids")
    return table, model.counted(chosen), options, "num_experts" in options and model.top_k < model.num_experts


def experts_named_as_rows(model):
    """Rows are experts, under a header that speaks of layers: no form that is known."""
    table, _, options, _ = transposed(model)
    table.names[0] = "name"
    for row in table.rows:
        row[0] = f"expert_{row[0]}"
    return table, None, options, False


def with_a_total(model):
    table, _, options, _ = wide(model)
    table.add(len(table.names), str(model.rng.choice(["total", "sum", "mean"])), [1] * len(table.rows))
    return table, None, options, False


def without_a_header(model):
    """Numbers alone; some of them with a column of layers, which must not be taken for an expert."""
    load = model.load()[:1].astype(float)
    table = Table(model.rng, [], load[0].tolist())
    if model.rng.random() < 0.4:
        table.rows = [[layer, *row] for layer, row in zip(model.ids, table.rows, strict=True)]
    return table, load, model.told("num_experts"), False


MAKERS = [long, long, wide, wide, transposed, tokens, experts_named_as_rows, with_a_total, without_a_header]


def table_variation(rng):
    """A table of random content in a random file."""
    model = Model(rng, most_layers=6)
    make = MAKERS[rng.integers(len(MAKERS))]
    table, truth, options, must_be_read = make(model)
    kinds = ["csv", "csv", "tsv", "txt", "csv.gz"] + ["parquet"] * 2 * bool(table.names)
    kind = str(rng.choice(kinds))
    write = _parquet(table) if kind == "parquet" else _text(table, kind)
    layer_ids = model.ids if table.names or "moe_layer_ids" in options else None
    return Variation(make.__name__, f"a.{kind}", write, truth, layer_ids, options, must_be_read)


def _label(label, layer):
    return layer if label == "{}" else label.format(layer)


def _text(table, kind):
    rng = table.rng
    separator, end = "\t" if kind == "tsv" or rng.random() < 0.2 else ",", str(rng.choice(["\n", "\r\n"]))
    joint = str(rng.choice([" ", ";"]))

    def cell(value):
        if isinstance(value, list):
            return joint.join(map(str, value))
        if isinstance(value, float) and value.is_integer():
            return str(int(value))
        text = str(value)
        return f'"{text}"' if separator in text else text

    rows = [table.names, *table.rows] if table.names else table.rows
    text = "".join(separator.join(map(cell, row)) + end for row in rows).encode()
    if rng.random() < 0.1:
        text = b"\xef\xbb\xbf" + text
    return lambda path: path.write_bytes(gzip.compress(text) if kind.endswith("gz") else text)


def _parquet(table):
    import pandas as pd

    frame = pd.DataFrame({name: [row[i] for row in table.rows] for i, name in enumerate(table.names)})
    if table.rng.random() < 0.3:
        whole = [name for name in frame if frame[name].dtype.kind == "f" and (frame[name] % 1 == 0).all()]
        frame = frame.astype(dict.fromkeys(whole, "int32"))
    as_text = {name: "category" for name in frame if frame[name].dtype.kind == "O" and isinstance(frame[name][0], str)}
    if table.rng.random() < 0.3:
        frame = frame.astype(as_text)
    size = int(table.rng.choice([7, 100000]))
    return lambda path: frame.to_parquet(path, index=False, row_group_size=size)
