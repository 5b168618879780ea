"""Tables written in random ways by code of its own: every one is read as the load behind it, or refused."""

import contextlib
import random
import zlib

import numpy as np
import pytest

from eplb_traces import InputError
from eplb_traces.readers import ReadOptions, read

LAYERS = ["layer", "layer_id", "layer_idx", "Layer", "Layer ID", "LAYER_INDEX"]
EXPERTS = ["expert", "expert_id", "expert_idx", "Expert"]
TOKENS = ["tokens", "count", "token_count", "load", "hotness", "freq", "Tokens"]
EXTRA = {"fraction": "0.25", "model": "deepseek", "phase": '"pre,fill"', "note": ""}
NUM_VARIATIONS = 500


class Variation:
    """A load, and a text that holds it."""

    def __init__(self, seed):
        rng = self.rng = random.Random(seed)
        self.num_layers, self.num_experts = rng.randint(2, 6), rng.choice([8, 12, 16, 32, 60])
        first = rng.choice([0, 1, 3])
        self.ids = sorted(rng.sample(range(first, first + 3 * self.num_layers), self.num_layers))
        self.num_windows = rng.choice([1, 1, 3])
        self.truth = np.array(
            [
                [[rng.choice([0, rng.randint(0, 999), 7.5]) for _ in range(self.num_experts)] for _ in self.ids]
                for _ in range(self.num_windows)
            ]
        )
        self.truth[:, :, 0] += 1  # no layer without a token
        self.is_told = rng.random() < 0.5
        self.write = rng.choice([self.long, self.wide, self.wide, self.transposed, self.tokens])
        self.names, self.rows = self.write()
        self.separator = rng.choice([",", ",", "\t"])
        self.end = rng.choice(["\n", "\r\n"])

    def number(self, value):
        return str(int(value)) if value == int(value) else str(value)

    def long(self):
        rng = self.rng
        names = [rng.choice(LAYERS), rng.choice(EXPERTS), rng.choice(TOKENS)]
        is_sparse = rng.random() < 0.5
        rows = [
            (w, [str(self.ids[m]), str(e), self.number(tokens)])
            for (w, m, e), tokens in np.ndenumerate(self.truth)
            if tokens or not is_sparse
        ]
        return self.with_windows(names, rows, rng.choice(["window", "step"]))

    def wide(self):
        rng = self.rng
        stem = rng.choice(["", "e", "expert_", "Expert ", "expert-"])
        label = rng.choice(["{}", "layer_{}", "model.layers.{}.mlp.gate"])
        order = rng.sample(range(self.num_experts), self.num_experts)
        names = [rng.choice([*LAYERS, "name", "module"]), *(f"{stem}{e}" for e in order)]
        rows = [
            (w, [label.format(self.ids[m]), *(self.number(self.truth[w, m, e]) for e in order)])
            for w in range(self.num_windows)
            for m in range(self.num_layers)
        ]
        return self.with_windows(names, rows, rng.choice(["window", "step"]))

    def transposed(self):
        rng = self.rng
        self.truth, self.num_windows = self.truth[:1], 1
        label = rng.choice(["layer_{}", "layer {}", "model.layers.{}.mlp", "{}"])
        order = rng.sample(range(self.num_layers), self.num_layers)
        names = [rng.choice(EXPERTS), *(label.format(self.ids[m]) for m in order)]
        rows = [
            [str(e), *(self.number(self.truth[0, m, e]) for m in order)]
            for e in rng.sample(range(self.num_experts), self.num_experts)
        ]
        return names, rows

    def tokens(self):
        rng = self.rng
        self.is_told, top_k, num_tokens = True, rng.randint(1, 4), rng.randint(1, 30)
        chosen = [[rng.sample(range(self.num_experts), top_k) for _ in self.ids] for _ in range(num_tokens)]
        self.truth = np.zeros((1, self.num_layers, self.num_experts))
        rows = []
        in_one = rng.random() < 0.5
        for t, m in ((t, m) for t in range(num_tokens) for m in range(self.num_layers)):
            self.truth[0, m, chosen[t][m]] += 1
            ids = [str(e) for e in chosen[t][m]]
            rows.append([str(t), str(self.ids[m]), *([" ".join(ids)] if in_one else ids)])
        rng.shuffle(rows)
        ids_names = [rng.choice(["experts", "topk_ids"])] if in_one else [f"expert_{k}" for k in range(top_k)]
        return [rng.choice(["token", "token_idx", "position"]), rng.choice(LAYERS), *ids_names], rows

    def with_windows(self, names, rows, name):
        rng = self.rng
        if self.num_windows > 1:
            step = 1 if name == "window" else 10
            names, rows = [name, *names], [(w, [str(w * step), *cells]) for w, cells in rows]
        cells = [cells for _, cells in rows]
        rng.shuffle(cells)
        for extra in rng.sample(sorted(EXTRA), rng.randint(0, 2)):
            at = rng.randint(0, len(names))
            names, cells = self.inserted(at, names, extra), [self.inserted(at, row, EXTRA[extra]) for row in cells]
        if rng.random() < 0.3:
            at = rng.sample(range(len(names)), len(names))
            names, cells = [names[i] for i in at], [[row[i] for i in at] for row in cells]
        return names, cells

    def inserted(self, at, cells, cell):
        return [*cells[:at], cell, *cells[at:]]

    @property
    def text(self):
        return "".join(self.separator.join(row) + self.end for row in [self.names, *self.rows])

    def options(self):
        return ReadOptions(num_experts=self.num_experts if self.is_told else None)


def misreading(path, variation):
    """What is wrong with how a file is read: nothing, a refusal, or other content."""
    try:
        load = read(path, variation.options()).load()
    except InputError as error:
        return f"refused: {error}"
    ids = load.shape.moe_layer_ids
    if not np.array_equal(load.tokens, variation.truth) or ids != tuple(variation.ids):
        return f"other: {load}, layers {ids}"
    return None


def test_every_variation_is_read_as_its_load(tmp_path):
    num_refused = 0
    for seed in range(NUM_VARIATIONS):
        variation = Variation(seed)
        path = tmp_path / f"load.{variation.rng.choice(['csv', 'tsv', 'txt'])}"
        path.write_bytes(variation.text.encode())
        wrong = misreading(path, variation)
        if wrong is not None and "give num_experts" in wrong:
            assert variation.write == variation.long  # a sparse table without E
            num_refused += 1
            continue
        assert wrong is None, f"seed {seed}: {wrong}\n{variation.text[:400]}"
    assert num_refused < NUM_VARIATIONS // 10


def test_the_oracle_sees_another_load(tmp_path):
    variation = Variation(1)
    (tmp_path / "load.csv").write_text(variation.text)
    assert misreading(tmp_path / "load.csv", variation) is None
    variation.truth[0, 0, 0] += 1
    assert misreading(tmp_path / "load.csv", variation).startswith("other")


DAMAGE = [
    b"\0",
    b"\xff",
    b",",
    b"\n",
    b'"',
    b"-",
    b"nan",
    b"1e999",
    b";",
    b"\t",
    b"#",
    b"\r",
    b" ",
    b"9" * 30,
    b"\xc2\xb2",
]


@pytest.mark.parametrize("first", range(0, 600, 200))
def test_damaged_files_end_in_a_load_or_a_named_error(tmp_path, first):
    for seed in range(first, first + 200):
        rng = random.Random(zlib.crc32(b"%d" % seed))
        content = bytearray(Variation(seed).text.encode()[:3000])
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(content))
            content[at : at + rng.randint(0, 4)] = rng.choice(DAMAGE)
        path = tmp_path / rng.choice(["a.csv", "a.tsv", "a.txt"])
        path.write_bytes(content)
        with contextlib.suppress(InputError):  # anything else is a bug
            read(path, ReadOptions(num_experts=rng.choice([None, 16]))).load()
