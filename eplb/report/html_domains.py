"""Prepares the load of every domain of a trace for the page."""

from typing import Any

import numpy as np

from eplb.report.html_arrays import packed, whole_numbers
from eplb_traces import RoutingTrace


def domains_payload(trace: RoutingTrace) -> dict[str, Any] | None:
    """Names, tokens and load [D, L, E] of the domains with tokens; None with fewer than two of them."""
    names = trace.domain_names
    if len(names) < 2:
        return None
    size = (len(names), trace.shape.num_layers, trace.shape.num_experts)
    load = np.zeros(size, np.int64)
    tokens = np.zeros(len(names), np.int64)
    for batch in trace.batches():
        if batch.domain is not None and batch.num_tokens:
            place = (batch.domain[:, None, None], np.arange(size[1])[:, None], batch.expert_ids)
            load += np.bincount(np.ravel_multi_index(place, size).ravel(), minlength=load.size).reshape(size)
            tokens += np.bincount(batch.domain, minlength=len(names))
    known = np.flatnonzero(tokens)
    if known.size < 2:
        return None
    return {
        "names": [names[domain] for domain in known],
        "tokens": tokens[known].tolist(),
        "load": packed(whole_numbers(load[known])),
    }
