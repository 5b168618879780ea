"""Live migration on 2 and 4 processes: exact under traffic; a fault leaves the old or the new layer."""

import pytest

torch = pytest.importorskip("torch")

from tests.runtime.migration_cases import CASES, run_all  # noqa: E402

NUM_GPUS = torch.cuda.device_count()
WORLDS = [
    pytest.param(("gloo", 2), id="gloo-2"),
    pytest.param(("gloo", 4), id="gloo-4"),
    pytest.param(("nccl", 2), id="nccl-2", marks=pytest.mark.skipif(NUM_GPUS < 2, reason="needs two GPUs")),
]


@pytest.fixture(scope="module", params=WORLDS)
def reports(request, tmp_path_factory):
    """{case: {rank: traceback or ""}}: starting processes is slow, so all cases run in the same ones."""
    context = torch.multiprocessing.get_context("spawn")
    results, store = context.Queue(), tmp_path_factory.mktemp("migrate") / "store"
    backend, size = request.param
    processes = [context.Process(target=run_all, args=(rank, size, backend, store, results)) for rank in range(size)]
    for process in processes:
        process.start()
    reports = {}
    for _ in range(size * len(CASES)):
        rank, name, report = results.get(timeout=120)
        reports.setdefault(name, {})[rank] = report
    for process in processes:
        process.join(timeout=30)
        assert process.exitcode == 0
    return reports


@pytest.mark.parametrize("case", CASES)
def test_on_every_rank(reports, case):
    for rank, report in reports[case].items():
        assert not report, f"rank {rank}\n{report}"
