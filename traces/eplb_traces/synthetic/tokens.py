"""Draws the experts of single tokens, given the rates of a workload.

A token's score for an expert is ln(rate) + preference of its sequence + topic term + Gumbel noise. With noise alone the
k best are a draw without replacement in proportion to the rates. The topic of a token is a random walk along the
sequence, which gives reuse of experts by neighbouring tokens (2.3 times chance from one token to the next on
DeepSeek-V2-Lite and gpt-oss) and co-activation of experts with similar topics. Group limits are applied as in
DeepSeek-V3: the groups with the largest sum of two scores, then the best experts inside (DeepSeek-V3 report, 2.1.2).

The choices are the same on every processor: logarithms are rounded from float64, sums have a fixed order, and equal
scores go to the lowest id. numpy's float32 logarithm, BLAS and partial sorts differ with the vector instructions.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from eplb_traces.model_shape import ModelShape
from eplb_traces.routing_trace import TokenBatch
from eplb_traces.synthetic.presets import Phase, Workload
from eplb_traces.synthetic.rates import expert_rates, stream

_TOPIC_DIMENSIONS = 4
_TOPIC_STRENGTH = 1.8  # weight of the topic term in a score
_TOPIC_PERSISTENCE = 0.75  # correlation of the topics of neighbouring tokens


@final
@dataclass(frozen=True)
class _Rows:
    """Requests, sequences and topics of the tokens of one step.

    Parameters
    ----------
    request
        [t]
    sequence
        [t] index into `preferences`.
    preferences
        [S, L, E] preference of each sequence, added to ln(rate).
    topic
        [t, D] standard normal.
    """

    request: NDArray[np.int64]
    sequence: NDArray[np.int64]
    preferences: NDArray[np.float32]
    topic: NDArray[np.float32]


def step_batches(
    workload_of_step: Sequence[Workload], shape: ModelShape, tokens_per_step: int, seed: int
) -> Iterator[TokenBatch]:
    """Draw one batch per step."""
    generator = stream(seed, "tokens", *(workload.name for workload in workload_of_step[:1]))
    expert_topics = _expert_topics(shape, seed)
    workload: Workload | None = None
    rows: _Rows | None = None
    log_rates = np.zeros((shape.num_layers, shape.num_experts))
    first_request = 0
    for step, workload_now in enumerate(workload_of_step):
        if workload_now != workload:
            workload, rows = workload_now, None
            log_rates = np.log(expert_rates(workload, shape, seed))
        if rows is None or workload_now.phase is Phase.PREFILL:
            rows = _new_rows(workload_now, log_rates, tokens_per_step, first_request, generator)
            first_request = int(rows.request[-1]) + 1
        else:
            rows = _next_tokens(rows, generator)
        expert_ids = _choices(log_rates, rows, expert_topics, shape, generator)
        yield TokenBatch(shape, expert_ids, np.full(tokens_per_step, step), rows.request)


def _expert_topics(shape: ModelShape, seed: int) -> NDArray[np.float32]:
    """Draw the topic of each expert: unit vectors [L, D, E]."""
    size = (shape.num_layers, _TOPIC_DIMENSIONS, shape.num_experts)
    topics: NDArray[np.float32] = stream(seed, "tastes").standard_normal(size, dtype=np.float32)
    topics /= np.linalg.norm(topics, axis=1, keepdims=True)
    return topics


def _new_rows(
    workload: Workload,
    log_rates: NDArray[np.float64],
    num_tokens: int,
    first_request: int,
    generator: np.random.Generator,
) -> _Rows:
    """Start new sequences: whole sequences in prefill, the first token of each in decode."""
    length = min(workload.tokens_per_sequence, num_tokens) if workload.phase is Phase.PREFILL else 1
    sequence = np.arange(num_tokens) // length
    num_sequences = int(sequence[-1]) + 1
    # A Dirichlet draw around the rates, up to a factor: one gamma draw per rate, as logarithm relative to the rate.
    expected = (workload.concentration * np.exp(log_rates)).astype(np.float32)
    preferences: NDArray[np.float32] = generator.standard_gamma(
        expected, (num_sequences, *log_rates.shape), dtype=np.float32
    )
    _log_in_place(preferences)
    preferences -= np.log(expected, dtype=np.float64).astype(np.float32)
    topic = np.empty((num_sequences, length, _TOPIC_DIMENSIONS), dtype=np.float32)
    topic[:, 0] = generator.standard_normal(topic[:, 0].shape)
    for position in range(1, length):
        topic[:, position] = _next_topic(topic[:, position - 1], generator)
    topic_of_token = topic.reshape(-1, _TOPIC_DIMENSIONS)[:num_tokens]
    return _Rows(first_request + sequence, sequence, preferences, topic_of_token)


def _next_tokens(rows: _Rows, generator: np.random.Generator) -> _Rows:
    """Decode one more token of every running request."""
    return _Rows(rows.request, rows.sequence, rows.preferences, _next_topic(rows.topic, generator))


def _next_topic(topic: NDArray[np.float32], generator: np.random.Generator) -> NDArray[np.float32]:
    """Advance topics by one token; the distribution stays standard normal."""
    noise = generator.standard_normal(topic.shape, dtype=np.float32)
    moved: NDArray[np.float32] = topic * np.float32(_TOPIC_PERSISTENCE)
    moved += noise * np.float32(np.sqrt(1 - _TOPIC_PERSISTENCE**2))
    return moved


def _choices(
    log_rates: NDArray[np.float64],
    rows: _Rows,
    expert_topics: NDArray[np.float32],
    shape: ModelShape,
    generator: np.random.Generator,
) -> NDArray[np.uint16]:
    """Choose the experts of every token: [t, L, K] of `log_rates` [L, E] and `expert_topics` [L, D, E]."""
    top_k = shape.top_k or 1
    chosen = np.empty((len(rows.topic), shape.num_layers, top_k), dtype=np.uint16)
    for layer in range(shape.num_layers):
        scores = generator.standard_exponential((len(rows.topic), shape.num_experts), dtype=np.float32)
        _log_in_place(scores)
        np.subtract(rows.preferences[rows.sequence, layer], scores, out=scores)  # minus ln of exponential: Gumbel noise
        scores += log_rates[layer].astype(np.float32)
        for dimension in range(_TOPIC_DIMENSIONS):
            strength = np.float32(_TOPIC_STRENGTH) * rows.topic[:, dimension, None]
            scores += strength * expert_topics[layer, dimension]
        if shape.top_k_groups is not None and shape.top_k_groups < shape.num_expert_groups:
            _limit_groups(scores, shape)
        chosen[:, layer] = _best(scores, top_k)
    return chosen


def _log_in_place(values: NDArray[np.float32]) -> None:
    """Natural logarithms, computed in float64."""
    np.maximum(values, np.finfo(np.float32).tiny, out=values)
    np.log(values, out=values, dtype=np.float64, casting="same_kind")


def _best(scores: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """[t, count] ids of the largest scores of each row, ascending; of equal scores the lowest ids."""
    best = np.sort(np.argpartition(scores, -count, axis=1)[:, -count:], axis=1)
    least = np.take_along_axis(scores, best, axis=1).min(axis=1)
    tied = (scores >= least[:, None]).sum(axis=1) > count
    best[tied] = np.sort(np.argsort(-scores[tied], axis=1, kind="stable")[:, :count], axis=1)
    return best


def _limit_groups(scores: NDArray[np.float32], shape: ModelShape) -> None:
    """Set the scores of experts outside the best groups to -inf, in place."""
    by_group = scores.reshape(len(scores), shape.num_expert_groups, shape.experts_per_group)
    group_scores = np.partition(by_group, -min(2, shape.experts_per_group), axis=2)[:, :, -2:].sum(axis=2)
    num_left_out = shape.num_expert_groups - (shape.top_k_groups or shape.num_expert_groups)
    left_out = np.argsort(group_scores, axis=1, kind="stable")[:, :num_left_out]
    by_group[np.arange(len(scores))[:, None], left_out] = -np.inf
