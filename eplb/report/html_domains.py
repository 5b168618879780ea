"""Prepares the load of each part of the traffic, a file or a domain, for the page."""

from typing import Any

from eplb.report.html_arrays import packed
from eplb.report.short_names import short_names
from eplb_traces import ExpertLoad


def domains_payload(parts: ExpertLoad | None) -> dict[str, Any] | None:
    """Names, choices of a layer and load [parts, L, E] of `ReportContents.parts`; None if there are none."""
    if parts is None:
        return None
    return {
        "names": list(short_names(parts.labels)),
        "choices": (parts.tokens.sum(axis=(1, 2)) / parts.num_layers).round().tolist(),
        "load": packed(parts.tokens),
    }
