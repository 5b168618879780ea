"""Which pass continues which requests: the key-value cache is found under any name, or its absence is an error."""

import pytest

from eplb_traces import InputError, read_trace
from tests.traces.examples import joined

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from eplb_traces.recorder.recorder import record  # noqa: E402  # needs torch
from tests.traces.recorder.models import NAMES, SHAPE, PlainModel  # noqa: E402


class Cache:
    """What the recorder asks a cache for."""

    length = 0

    def get_seq_length(self):
        if self.length is None:
            raise ValueError("linear attention has no length")
        return self.length


def test_an_emptied_cache_or_one_with_other_rows_starts_new_requests(tmp_path):
    model, cache = PlainModel(), Cache()
    hidden = torch.randn(2, 3, 6)
    with record(model, tmp_path / "a.parquet", routers=NAMES, shape=SHAPE):
        for length, rows in ((0, 2), (3, 2), (6, 1), (9, 1), (0, 1), (3, 1), (None, 1)):
            cache.length = length
            model(hidden[:rows], past_key_values=cache)
    requests = joined(read_trace(tmp_path / "a.parquet"))["request"]
    assert requests[::3].tolist() == [0, 1, 0, 1, 2, 2, 3, 3, 3]


class ModelWithState(PlainModel):
    """Takes what it is given under any name, and returns `returned`."""

    returned = None

    def forward(self, hidden, *more, attention_mask=None, position_ids=None, **words):
        super().forward(hidden)
        return self.returned


def filled(length):
    cache = Cache()
    cache.length = length
    return cache


@pytest.mark.parametrize(
    "given",
    [
        lambda cache: ((), {"past_key_values": cache}),
        lambda cache: ((), {"cache": cache}),
        lambda cache: ((), {"kv": cache}),
        lambda cache: ((cache,), {}),
        lambda cache: ((), {"state": {"layers": [cache]}}),
        lambda cache: ((), {"cache": cache, "past_key_values": cache, "draft": Cache()}),
    ],
)
def test_a_cache_is_found_under_any_name(given, tmp_path):
    model, cache = ModelWithState(), Cache()
    more, words = given(cache)
    with record(model, tmp_path / "a.parquet", routers=NAMES, shape=SHAPE):
        for length in (0, 3, 6):
            cache.length = length
            model(torch.randn(2, 3, 6), *more, **words, attention_mask=torch.ones(2, 3 + length))
    assert joined(read_trace(tmp_path / "a.parquet"))["request"].tolist() == [0, 0, 0, 1, 1, 1] * 3


@pytest.mark.parametrize("wrapped", [lambda cache: (None, cache), lambda cache: {"kv": cache}])
def test_a_cache_that_the_model_made_is_found_in_its_output(wrapped, tmp_path):
    model, cache = ModelWithState(), filled(3)
    with record(model, tmp_path / "a.parquet", routers=NAMES, shape=SHAPE):
        model.returned = wrapped(cache)
        model(torch.randn(2, 3, 6))
        model(torch.randn(2, 1, 6), kv=cache)
    assert joined(read_trace(tmp_path / "a.parquet"))["request"].tolist() == [0, 0, 0, 1, 1, 1, 0, 1]


def test_a_length_on_the_device_is_read(tmp_path):
    model, cache = PlainModel(), Cache()
    with record(model, tmp_path / "a.parquet", routers=NAMES, shape=SHAPE):
        for length in (0, 3, 0):
            cache.length = torch.tensor(length)
            model(torch.randn(1, 3, 6), past_key_values=cache)
    assert joined(read_trace(tmp_path / "a.parquet"))["request"].tolist() == [0] * 6 + [1] * 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"attention_mask": torch.ones(2, 9, dtype=torch.long)}, "attention_mask has 9 tokens and the pass 3"),
        (
            {"attention_mask": torch.ones(2, 9, dtype=torch.long), "cache": Cache()},
            "attention_mask has 9 tokens and the pass 3: a filled key-value cache is in use, but no argument",
        ),
        ({"position_ids": torch.tensor([[6, 7, 8]])}, "position_ids starts at 6"),
        ({"cache_position": torch.tensor([6, 7, 8])}, "cache_position starts at 6"),
        ({"past_key_values": ((torch.ones(2, 1, 6, 4),) * 2,)}, "past_key_values is tuple: expected a cache with get_"),
        ({"kv": type("KeyCache", (), {})()}, "kv is KeyCache: expected a cache with get_seq_length"),
        ({"a": filled(3), "b": filled(3)}, r"called with 2 key-value caches: a \(Cache\), b \(Cache\): expected one"),
    ],
)
def test_a_filled_cache_that_cannot_be_found_is_refused(words, message, tmp_path):
    model = ModelWithState()
    with pytest.raises(InputError, match=message), record(model, tmp_path / "a.parquet", routers=NAMES, shape=SHAPE):
        model(torch.randn(2, 3, 6), **words)
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_was_filled_inside_the_model_is_refused(tmp_path):
    model = ModelWithState()
    model.returned = {"kv": filled(9)}
    with (
        pytest.raises(InputError, match="the model returned a cache of 9 tokens after a pass of 3: a filled"),
        record(model, tmp_path / "a.parquet", routers=NAMES, shape=SHAPE),
    ):
        model(torch.randn(2, 3, 6))


def test_positions_of_padded_prompts_and_empty_caches_are_no_earlier_tokens(tmp_path):
    model = ModelWithState()
    with record(model, tmp_path / "a.parquet", routers=NAMES, shape=SHAPE):
        model(torch.randn(2, 3, 6), position_ids=torch.tensor([[0, 1, 2], [1, 1, 0]]), past_key_values=None, cache=())
        model(torch.randn(1, 3, 6), position_ids=torch.tensor([[1, 2, 3]]), use_cache=False)
    assert joined(read_trace(tmp_path / "a.parquet"))["request"].tolist() == [0] * 3 + [1] * 3 + [2] * 3


def test_a_cache_that_is_new_in_every_pass_is_refused(tmp_path):
    model = ModelWithState()
    message = r"a Cache of 4 tokens is new in this pass of 1, .* continues those requests cannot be decided"
    with record(model, tmp_path / "a.parquet", routers=NAMES, shape=SHAPE):
        model(torch.randn(2, 3, 6), cache=filled(0))
        model(torch.randn(2, 1, 6), cache=filled(3))
        with pytest.raises(InputError, match=message):
            model(torch.randn(2, 1, 6), cache=filled(4))


def test_copies_of_a_filled_cache_start_requests(tmp_path):
    model = ModelWithState()
    with record(model, tmp_path / "a.parquet", routers=NAMES, shape=SHAPE):
        model(torch.randn(1, 3, 6), cache=filled(0))
        for _ in range(3):
            model(torch.randn(1, 2, 6), cache=filled(3))
    assert joined(read_trace(tmp_path / "a.parquet"))["request"].tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3]


def test_new_caches_that_the_model_returns_continue_their_requests(tmp_path):
    model, cache = ModelWithState(), filled(0)
    with record(model, tmp_path / "a.parquet", routers=NAMES, shape=SHAPE):
        for length in (0, 3, 4, 5):
            cache.length, model.returned = length, filled(length)
            model(torch.randn(1, 3 if length == 0 else 1, 6), cache=cache)
            cache = model.returned
    assert joined(read_trace(tmp_path / "a.parquet"))["request"].tolist() == [0] * 6
