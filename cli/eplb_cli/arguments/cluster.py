"""The option `--ray`, and the executor that it names."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from eplb_traces.scale.executors import Executor

RayOpt = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="ADDRESS",
        help="Run on a Ray cluster: auto, HOST:PORT, ray://HOST:PORT, or local to start one here.",
        show_default="on this machine, without Ray",
    ),
]


@contextmanager
def cluster(address: str | None) -> Iterator["Executor | None"]:
    """The Ray cluster at an address for the time of the block; None without one."""
    if address is None:
        yield None
        return
    from eplb_traces.scale.ray_cluster import ray_cluster

    with ray_cluster(address) as executor:
        yield executor
