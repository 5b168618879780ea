"""`eplb trace reduce`: the load of a trace that lies in many files, counted file by file."""

from pathlib import Path
from time import perf_counter
from typing import Annotated

import typer

from eplb_cli import output
from eplb_cli.arguments.cluster import RayOpt, cluster
from eplb_cli.arguments.options import JsonOpt
from eplb_cli.arguments.reading import Reading, reads_loads

FilesArg = Annotated[
    list[str],
    typer.Argument(
        metavar="FILE", help="Token-level traces, or patterns in quotes: 'traces/*.parquet'.", show_default=False
    ),
]
OutOpt = Annotated[
    Path,
    typer.Option(
        "--output", "-o", metavar="OUT", help="The load: .npz, .parquet, .csv or .json.", show_default=False
    ),
]  # fmt: skip


@reads_loads
def reduce(files: FilesArg, out: OutOpt, ray: RayOpt = None, *, reading: Reading, as_json: JsonOpt = False) -> None:
    """Count the load of a trace in many files, several at a time, each as a stream.

    The counts of finished files are kept in the folder OUT.shards until OUT is written: the same command continues an
    interrupted run. With --window, --combine time or sum says how the steps of the files follow each other.
    """
    from eplb_traces.files.remote import url_of
    from eplb_traces.files.writers import check_load_suffix, write_load
    from eplb_traces.scale.checkpoint import Checkpoint
    from eplb_traces.scale.executors import Threads
    from eplb_traces.scale.reduce import files_of, reduce_trace
    from eplb_traces.scale.shard_counts import Shard

    check_load_suffix(out)
    found = files_of(files)
    how = None if reading.combine is None else reading.how(len(found))
    options = reading.options()
    shards = [Shard(path, options, reading.dialect, reading.window) for path in found]
    kept = f"{out.name}.shards"
    checkpoint = Checkpoint(out.with_name(kept) if url_of(out) is None else Path(kept))
    start = perf_counter()
    with cluster(ray) as workers, output.progress("counting", total=len(shards)) as step:
        made = reduce_trace(shards, how, workers or Threads(), checkpoint, step)
    seconds = perf_counter() - start
    with output.progress(f"writing {out.name}"):
        write_load(made.load, out)
    checkpoint.remove()
    if as_json:
        sizes = {"num_files": len(shards), "num_tokens": made.num_tokens, "num_windows": made.load.num_windows}
        output.json_object({"written": {"path": url_of(out) or str(out), "kind": "load"}, **sizes})
        return
    output.line(f"wrote {url_of(out) or out}")
    in_files = f"{output.counted(made.num_tokens, 'token')} in {output.counted(len(shards), 'file')}"
    output.line(f"  {in_files}, {output.counted(made.load.num_windows, 'window')}")
    if made.num_resumed:
        output.note(f"{made.num_resumed} of {len(shards)} files had been counted before")
    else:
        output.note(f"{made.load.tokens.sum() / seconds / 1e6:.0f} M expert ids a second")
