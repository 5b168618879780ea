"""Placed experts in bf16 on two GPUs, with the kernels of the grouped FFN; skipped without them."""

import pytest
import torch

from eplb.runtime import Launch, run_processes
from tests.runtime.model import toy_model


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("exchange", ["allgather", "alltoall"])
def test_blocks_with_placed_experts_are_close_to_the_whole_model(exchange):
    for errors, reason in run_processes(Launch(2, "nccl"), toy_model.run_on_gpus, exchange):
        assert reason == ""
        assert len(errors) == 2 * toy_model.LAYERS
        assert max(errors) < 2e-2
