"""Cuts the full recordings of the 435M model down to the samples that the package carries."""

import sys
from pathlib import Path

import numpy as np

from eplb_traces import ExpertLoad, ModelShape, RoutingTrace, TokenBatch, read_load, write_load, write_trace

SHAPE = ModelShape(8, 256, 8, 8, 4, moe_layer_ids=tuple(range(1, 9)), num_hidden_layers=9)
TOKENS_PER_REQUEST = 512
STRIDE = 6
STEPS_PER_WINDOW = 4


def main(recordings: Path, samples: Path) -> None:
    """Write both samples."""
    write_trace(cut_tokens(recordings / "tokens.npz"), samples / "moe-435m.parquet")
    windows = read_load(recordings / "windows.npz")
    merged = windows.merged(STEPS_PER_WINDOW)
    write_load(ExpertLoad(merged.tokens, shape=SHAPE), samples / "moe-435m-windows.npz")


def cut_tokens(path: Path) -> RoutingTrace:
    """Keep every STRIDE-th token of each request and step."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    position = np.arange(len(arrays["step"])) % TOKENS_PER_REQUEST
    kept = position % STRIDE == 0
    batch = TokenBatch(
        SHAPE,
        arrays["topk_ids"][kept],
        arrays["step"][kept],
        arrays["request"][kept],
        domain=arrays["domain"][kept].astype(np.int32),
    )
    return RoutingTrace(SHAPE, [batch], domain_names=arrays["domain_names"].tolist())


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
