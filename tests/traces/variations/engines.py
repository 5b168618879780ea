"""Files and folders of our own formats and of engines' recorders, as a base for mutations."""

import base64
import json

import numpy as np

from eplb_traces import ExpertLoad, ModelShape, RoutingTrace, write_load, write_trace
from tests.traces.examples import random_batch

SHAPE = ModelShape(3, 16, 2, moe_layer_ids=(1, 2, 3), num_hidden_layers=4)


def _load(rng, *, suffix):
    weights = np.array([1.0, 2.0]) if suffix in (".npz", ".parquet") else None
    return ExpertLoad(rng.integers(1, 900, (2, 3, 16)), weights, ["a", "b"], SHAPE)


def _own_load(suffix):
    def write(rng, folder):
        write_load(_load(rng, suffix=suffix), folder / f"a{suffix}")
        return folder / f"a{suffix}"

    return write


def _own_trace(rng, folder):
    write_trace(RoutingTrace(SHAPE, [random_batch(rng, 30, SHAPE, optional=True)]), folder / "a.parquet")
    return folder / "a.parquet"


def _npz_trace(rng, folder):
    batch = random_batch(rng, 30, SHAPE)
    np.savez_compressed(
        folder / "a.npz",
        expert_ids=batch.expert_ids,
        seq_offsets=np.array([0, 10, 30]),
        domain=np.array(["a", "b"]),
        moe_layer_ids=np.array([1, 2, 3]),
        num_experts=np.array(16),
        domain_names=np.array(["a", "b"]),
    )
    return folder / "a.npz"


def _recorder(mode):
    def write(rng, folder):
        import torch

        counts, chosen = (
            torch.from_numpy(rng.integers(1, 90, (3, 20))),
            torch.from_numpy(rng.integers(0, 20, (3, 7, 2))),
        )
        logical = torch.arange(20).remainder(16).repeat(3, 1)
        record = {
            "forward_pass_id": 4,
            "rank": 0,
            "global_physical_count": counts,
            "topk_ids_of_layer": chosen,
            "extend_seq_lens": [3, 4],
        }
        documents = {
            "stat": {"logical_count": counts[None], "rank": 0},
            "passes": {"records": [record, {**record, "forward_pass_id": 5}], "last_physical_to_logical_map": logical},
            "older": {"logical_count": counts},
            "tensors": [counts.float(), counts.float()],
        }
        zipped = mode != "older"
        torch.save(documents[mode], folder / "a.pt", _use_new_zipfile_serialization=zipped)
        return folder / "a.pt"

    return write


def _sglang_routed(rng, folder):
    raw = base64.b64encode(rng.integers(0, 16, (5, 4, 2)).astype("<i4").tobytes()).decode()
    (folder / "a.jsonl").write_text(json.dumps({"meta_info": {"routed_experts": raw}}) + "\n")
    return folder / "a.jsonl"


def _trtllm(rng, folder):
    from safetensors.numpy import save_file

    (folder / "meta_info.json").write_text(json.dumps({"num_experts": 16, "num_experts_per_token": 2}))
    for rank in range(2):
        save_file(
            {f"{i}_{layer}": rng.integers(0, 90, 16) for i in (3, 4) for layer in (1, 2)},
            folder / f"rank{rank}.safetensors",
        )
    return folder


def _mindie(rng, folder):
    config = {
        "num_moe_layers": 2,
        "num_of_experts": 8,
        "num_of_selected_experts": [2],
        "eplb_expert_map_file": "map.json",
    }
    (folder / "model_gen_config.json").write_text(json.dumps(config))
    devices = [{"device_id": rank, "device_expert": list(range(4 * rank, 4 * rank + 4))} for rank in range(2)]
    (folder / "map.json").write_text(
        json.dumps({"layer_list": [{"layer_id": i, "device_list": devices} for i in (0, 1)]})
    )
    for rank in range(2):
        rows = np.cumsum(rng.integers(0, 90, (3, 2, 4)), axis=0).reshape(-1, 4)
        np.savetxt(folder / f"decode_{rank}.csv", rows, fmt="%d", delimiter=",")
    return folder


def _omni(rng, folder):
    for step in (1, 2):
        for rank in range(2):
            text = "".join("".join(f"{n}\t" for n in row) + "\n" for row in rng.integers(0, 90, (3, 8)))
            (folder / f"activation_counts_recordstep_{step}_rank_{rank}.txt").write_text(text)
    return folder


WRITERS = [
    *(_own_load(suffix) for suffix in (".npz", ".parquet", ".csv", ".json")),
    *(_recorder(mode) for mode in ("stat", "passes", "older", "tensors")),
    *(_own_trace, _own_trace, _npz_trace, _sglang_routed, _trtllm, _mindie, _omni),
]


def written(rng, folder):
    """One of these files or folders."""
    return WRITERS[rng.integers(len(WRITERS))](rng, folder)
