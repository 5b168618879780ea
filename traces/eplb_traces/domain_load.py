"""Counts the load of each domain of a trace."""

import numpy as np

from eplb_traces.expert_load import ExpertLoad
from eplb_traces.routing_trace import RoutingTrace

NO_DOMAIN = "no domain"
"""Name of the tokens whose domain is unknown."""


def load_by_domain(trace: RoutingTrace) -> ExpertLoad | None:
    """The load of a trace with one window for each domain that holds tokens, labelled by its name.

    Tokens without a domain are one more window, `NO_DOMAIN`. A domain without a name has its number. Reads the source
    once.

    Returns
    -------
    ExpertLoad or None
        None if all tokens have the same domain, or none has one.
    """
    from eplb_traces.kernels import count_tokens

    counts: dict[int, np.ndarray[tuple[int, ...], np.dtype[np.int64]]] = {}
    for batch in trace.batches():
        if not batch.num_tokens:
            continue
        domain = np.full(batch.num_tokens, -1) if batch.domain is None else batch.domain
        found, index = np.unique(domain, return_inverse=True)
        of_batch = np.zeros((found.size, trace.shape.num_layers, trace.shape.num_experts), dtype=np.int64)
        count_tokens(batch.expert_ids, index.astype(np.int64), of_batch)
        for number, of_domain in zip(found.tolist(), of_batch, strict=True):
            counts[number] = counts[number] + of_domain if number in counts else of_domain
    if len(counts) < 2:
        return None
    numbers = [*sorted(number for number in counts if number >= 0), *(number for number in counts if number < 0)]
    labels = [_name(number, trace.domain_names) for number in numbers]
    return ExpertLoad(np.stack([counts[number] for number in numbers]), labels=labels, shape=trace.shape)


def _name(number: int, names: tuple[str, ...]) -> str:
    return NO_DOMAIN if number < 0 else names[number] if number < len(names) else f"domain {number}"
