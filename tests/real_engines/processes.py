"""Runs a function in several processes joined by gloo, forked from one that has imported an engine already."""

import multiprocessing
import tempfile
import traceback
from pathlib import Path

import torch

PATIENCE_S = 120


def run_ranks(function, num_ranks, *arguments):
    """[R] what `function(rank, num_ranks, file, *arguments)` gives on each rank; `file` is for their rendezvous.

    Forked, so that an engine's import is paid for once: torch has one thread on both sides, as threads do not survive a
    fork. An exception of a rank is an AssertionError here, with its traceback.
    """
    torch.set_num_threads(1)
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "rendezvous")
        ranks = [
            context.Process(target=_run, args=(results, function, rank, num_ranks, file, *arguments), daemon=True)
            for rank in range(num_ranks)
        ]
        for process in ranks:
            process.start()
        try:
            found = dict(_take(results) for _ in ranks)
        finally:
            for process in ranks:
                process.join(timeout=10)
                process.kill()
    return [found[rank] for rank in range(num_ranks)]


def _run(results, function, rank, num_ranks, file, *arguments):
    torch.set_num_threads(1)
    try:
        results.put((rank, function(rank, num_ranks, file, *arguments), None))
    except BaseException:
        results.put((rank, None, traceback.format_exc()))


def _take(results):
    rank, value, problem = results.get(timeout=PATIENCE_S)
    assert problem is None, f"rank {rank}: {problem}"
    return rank, value
