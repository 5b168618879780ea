"""Recorded traces that are shipped with the package; no download."""

from eplb_traces import ExpertLoad, RoutingTrace

__all__ = ["moe_435m", "moe_435m_windows"]


def moe_435m() -> RoutingTrace:
    """The recorded token-level trace of a model of 435 million parameters: 8 MoE layers of 256 experts, top 8.

    `sample:moe-435m` names the same trace on the command line. Its origin is described in
    `traces/eplb_traces/samples/README.md`.

    Raises
    ------
    MissingExtraError
        Without pyarrow (the extra `trace`).

    Examples
    --------
    >>> import eplb
    >>> eplb.datasets.moe_435m()
    RoutingTrace(8 layers x 256 experts, top-8)
    """
    from eplb_traces.readers import read_trace

    return read_trace("sample:moe-435m")


def moe_435m_windows() -> ExpertLoad:
    """The load of another recording of the same model, in windows; needs no extra.

    Examples
    --------
    >>> import eplb
    >>> eplb.datasets.moe_435m_windows()
    ExpertLoad(150 windows x 8 layers x 256 experts)
    """
    from eplb_traces.readers import read_load

    return read_load("sample:moe-435m-windows")
