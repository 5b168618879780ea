"""Files written in random ways by code of its own: every one is read as the truth behind it, or refused by name."""

import os
from collections import Counter

import numpy as np
import pytest

from tests.traces.variations.arrays import array_variation
from tests.traces.variations.records import record_variation
from tests.traces.variations.tables import table_variation
from tests.traces.variations.variation import Variation, is_read, misreading

NUM_VARIATIONS = int(os.environ.get("EPLB_NUM_VARIATIONS", "510"))
"""Shared by the kinds of files; set the variable to look further."""
KINDS = {"tables": table_variation, "arrays": array_variation, "records": record_variation}
NUM_PARTS = 3


@pytest.mark.parametrize("part", range(NUM_PARTS))
@pytest.mark.parametrize("kind", KINDS)
def test_no_variation_is_misread(tmp_path, kind, part):
    for needed in ("torch", "safetensors", "pyarrow"):
        pytest.importorskip(needed)
    size = NUM_VARIATIONS // len(KINDS) // NUM_PARTS
    num_read, num_refused = Counter(), Counter()
    for seed in range(part * size, (part + 1) * size):
        variation = KINDS[kind](np.random.default_rng(seed))
        path = tmp_path / variation.name
        variation.write(path)
        wrong = misreading(variation, path)
        assert wrong is None, f"seed {seed}, {variation.kind}, {variation.options}: {wrong}"
        if variation.truth is not None:
            (num_read if variation.must_be_read or is_read(variation, path) else num_refused)[variation.kind] += 1
    assert num_read.total() > num_refused.total()  # refusing is no way out


def test_the_oracle_sees_other_content_layers_and_refusals(tmp_path):
    truth = np.arange(5000, 5032.0).reshape(1, 4, 8)
    path = tmp_path / "a.npy"
    np.save(path, truth[0])

    def wrong(truth, layer_ids, **options):
        return misreading(Variation("counts", "a.npy", lambda _: None, truth, layer_ids, options, True), path)

    assert wrong(truth, None, num_experts=8) is None
    assert wrong(truth + 1, None, num_experts=8).startswith("other: read as counts")
    assert wrong(None, None, num_experts=8).startswith("other: read as counts")
    assert wrong(truth, (0, 1, 2, 3), num_experts=8).startswith("layers None for (0, 1, 2, 3)")
    assert wrong(truth, None, num_experts=5).startswith("refused: ")
