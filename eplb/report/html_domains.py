"""Prepares the load of every domain of a trace for the page."""

from typing import Any

import numpy as np

from eplb.report.html_arrays import packed, whole_numbers
from eplb_traces import RoutingTrace
from eplb_traces.kernels import count_tokens


def domains_payload(trace: RoutingTrace) -> dict[str, Any] | None:
    """Names, tokens and load [D, L, E] of the domains with tokens; None with fewer than two of them."""
    names = trace.domain_names
    if len(names) < 2:
        return None
    load = np.zeros((len(names), trace.shape.num_layers, trace.shape.num_experts), np.int64)
    tokens = np.zeros(len(names), np.int64)
    for batch in trace.batches():
        if batch.domain is not None and batch.num_tokens:
            count_tokens(batch.expert_ids, batch.domain.astype(np.int64), load)
            tokens += np.bincount(batch.domain, minlength=len(names))
    known = np.flatnonzero(tokens)
    if known.size < 2:
        return None
    return {
        "names": [names[domain] for domain in known],
        "tokens": tokens[known].tolist(),
        "load": packed(whole_numbers(load[known])),
    }
