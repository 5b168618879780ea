"""Small traces and loads that several tests build on, and where the real recordings lie."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from eplb_traces import ExpertLoad, ModelShape, RoutingTrace, TokenBatch

RECORDINGS = Path(__file__).resolve().parents[3] / "shared" / "traces"
needs_recordings = pytest.mark.skipif(
    not RECORDINGS.is_dir(), reason="the full recordings are not beside the repository"
)


def random_ids(rng, num_tokens, shape):
    """[t, L, K] with K different ids for each token and layer."""
    keys = rng.random((num_tokens, shape.num_layers, shape.num_experts))
    return np.argsort(keys, axis=2)[:, :, : shape.top_k].astype(np.uint16)


def random_batch(rng, num_tokens, shape, *, num_steps=5, optional=False):
    columns = [rng.integers(0, num_steps, num_tokens), rng.integers(0, 3, num_tokens)]
    if optional:
        columns += [rng.integers(0, 4, num_tokens).astype(np.int32), rng.integers(0, 2, num_tokens).astype(np.int32)]
    return TokenBatch(shape, random_ids(rng, num_tokens, shape), *columns)


@st.composite
def traces(draw):
    """Traces of one to four batches, some of them empty, steps in any order and across batches."""
    num_experts = draw(st.integers(1, 12))
    shape = ModelShape(draw(st.integers(1, 3)), num_experts, draw(st.integers(1, min(4, num_experts))))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    optional = draw(st.booleans())
    sizes = [*draw(st.lists(st.integers(0, 20), max_size=3)), draw(st.integers(1, 20))]
    batches = [random_batch(rng, size, shape, num_steps=30, optional=optional) for size in sizes]
    return RoutingTrace(shape, batches, domain_names=("prose", "code") if optional else ())


@st.composite
def loads(draw):
    """Loads with weights, labels and a shape, or without; zero windows and layers included."""
    size = tuple(draw(st.integers(1, limit)) for limit in (3, 4, 6))
    values = st.one_of(st.just(0.0), st.integers(0, 10**9).map(float), st.floats(0, 1e12))
    tokens = draw(npst.arrays(np.float64, size, elements=values))
    if not draw(st.booleans()):
        return ExpertLoad(tokens)
    num_windows, num_layers, num_experts = size
    ids = tuple(draw(st.sets(st.integers(0, 9), min_size=num_layers, max_size=num_layers)))
    shape = ModelShape(num_layers, num_experts, 1, moe_layer_ids=tuple(sorted(ids)), num_hidden_layers=10)
    weights = draw(npst.arrays(np.float64, num_windows, elements=st.floats(0.1, 10)))
    return ExpertLoad(tokens, weights, [f"part {w}" for w in range(num_windows)], shape)


def joined(trace):
    """All columns of a trace, its batches put together; None for a column it does not have."""
    batches = list(trace.batches())
    names = ("expert_ids", "step", "request", "source_rank", "domain")
    columns = {name: [getattr(batch, name) for batch in batches] for name in names}
    return {name: None if parts[0] is None else np.concatenate(parts) for name, parts in columns.items()}


def assert_same_tokens(trace, other):
    assert trace.shape == other.shape
    assert trace.domain_names == other.domain_names
    ours, theirs = joined(trace), joined(other)
    for name, column in ours.items():
        np.testing.assert_array_equal(column, theirs[name], err_msg=name)


SMALL = ModelShape(2, 8, 3)


def small_trace(num_tokens=12):
    return RoutingTrace(SMALL, [random_batch(np.random.default_rng(1), num_tokens, SMALL)])


def random_load():
    return ExpertLoad(np.random.default_rng(2).integers(1, 100, (2, 3, 4)))
