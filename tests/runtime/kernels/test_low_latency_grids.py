"""Every size that the low-latency mode accepts has grids whose programs are resident together on an H200."""

from types import SimpleNamespace

import pytest
import torch

from eplb.runtime.exchange.symmetric.region import RegionShape
from eplb.runtime.exchange.symmetric.settings import KernelSettings
from eplb.runtime.kernels.launch import resident_registers
from eplb.runtime.kernels.low_latency import MOST_CHOICES, combine_grid, dispatch_grid

TOP_K = 8
GPU = torch.device("cuda")
SIZES = [
    (ranks, tokens)
    for ranks in (1, 2, 3, 4, 8, 16, 31)
    for tokens in (1, 5, 32, 64, 128, 256, 512, 1024)
    if ranks * tokens * TOP_K <= MOST_CHOICES
]


@pytest.fixture(autouse=True)
def h200(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(multi_processor_count=132))


@pytest.mark.parametrize(("ranks", "tokens"), SIZES)
def test_programs_are_resident_together(ranks, tokens):
    shape = RegionShape(ranks, tokens, TOP_K, 7168)
    programs, warps = dispatch_grid(shape, GPU)
    assert programs >= tokens  # one program sends one token
    assert resident_registers(programs, warps, GPU) >= 64
    grid = combine_grid(shape, KernelSettings(), GPU)
    assert resident_registers(grid.on_device, grid.warps, GPU) >= 64
    assert grid.programs % 2 == 0


def test_two_ranks_with_128_tokens_have_a_program_for_each_copy():
    shape = RegionShape(2, 128, TOP_K, 7168)
    assert dispatch_grid(shape, GPU) == (256, 4)
    assert combine_grid(shape, KernelSettings(), GPU).programs == 256
