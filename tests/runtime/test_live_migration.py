"""Live migration on 2 and 4 processes: exact under traffic; a fault leaves the old or the new layer."""

import pytest

torch = pytest.importorskip("torch")

from eplb.runtime import Launch, run_processes  # noqa: E402
from tests.runtime import migration_cases, pushed_migration_cases  # noqa: E402

NUM_GPUS = torch.cuda.device_count()
WORLDS = [
    pytest.param(("gloo", 2), id="gloo-2"),
    pytest.param(("gloo", 4), id="gloo-4"),
    pytest.param(("nccl", 2), id="nccl-2", marks=pytest.mark.skipif(NUM_GPUS < 2, reason="needs two GPUs")),
]


@pytest.fixture(scope="module", params=WORLDS)
def reports(request):
    """The reports of each process: the cases of a file run in the same ones."""
    communicator, processes = request.param
    launch = Launch(processes, communicator, timeout_s=60)
    pushed = run_processes(launch, pushed_migration_cases.run_all, None)
    return [a | b for a, b in zip(pushed, run_processes(launch, migration_cases.run_all, None), strict=True)]


@pytest.mark.parametrize("case", [*migration_cases.CASES, *pushed_migration_cases.CASES])
def test_on_every_rank(reports, case):
    for rank, report in enumerate(reports):
        assert not report[case], f"rank {rank}\n{report[case]}"
