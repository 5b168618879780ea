"""`eplb trace convert` on what each engine writes."""

import base64
import io
import json

import numpy as np
import pytest

from eplb_cli.exit_codes import ExitCode
from eplb_traces import ModelShape, read_load, read_trace
from tests.traces.examples import SMALL, joined, random_ids

COUNTS = np.random.default_rng(0).integers(1, 100, (2, 3, 4))
IDS = np.zeros((6, 3, 3), dtype=np.int32)  # of three hidden layers the first is dense
IDS[:, 1:] = random_ids(np.random.default_rng(0), 6, SMALL)


def trtllm(folder):
    from safetensors.numpy import save_file

    (folder / "meta_info.json").write_text('{"num_experts": 4, "num_experts_per_token": 2}')
    save_file({f"{w}_{layer}": COUNTS[w, layer] for w in range(2) for layer in range(3)}, folder / "rank0.safetensors")
    return folder


def mindie(folder):
    config = {"num_moe_layers": 3, "num_of_experts": 4, "num_of_selected_experts": [2]}
    (folder / "model_gen_config.json").write_text(json.dumps(config))
    for rank in range(2):
        rows = COUNTS.cumsum(axis=0)[:, :, 2 * rank : 2 * rank + 2].reshape(-1, 2)
        (folder / f"prefill_{rank}.csv").write_text("".join(f"{a},{b}\n" for a, b in rows))
    return folder


def omni(folder):
    for window in range(2):
        for rank in range(2):
            rows = COUNTS[window, :, 2 * rank : 2 * rank + 2]
            name = f"activation_counts_recordstep_{window}_rank_{rank}.txt"
            (folder / name).write_text("".join(f"{a}\t{b}\t\n" for a, b in rows))
    return folder


def vllm_stats(folder):
    slots = [[3, 2, 1, 0]] * 3
    fields = {"record_type": "eplb_load_stats", "version": 1, "num_ranks": 1, "p2l_map": slots}
    records = [fields | {"step": w, "expert_load": COUNTS[w, :, ::-1].tolist()} for w in range(2)]
    (folder / "stats.jsonl").write_text("\n".join(map(json.dumps, records)))
    return folder / "stats.jsonl"


@pytest.mark.parametrize("write", [trtllm, mindie, omni, vllm_stats])
def test_loads_of_every_engine(run, tmp_path, write):
    pytest.importorskip("safetensors")
    folder = tmp_path / "dump"
    folder.mkdir()
    result = run("trace", "convert", write(folder), tmp_path / "load.npz", "--num-experts", "4")
    assert (result.exit_code, result.stdout) == (0, f"wrote {tmp_path / 'load.npz'}\n"), result.stderr
    np.testing.assert_array_equal(read_load(tmp_path / "load.npz").tokens, COUNTS)
    assert run("trace", "convert", folder, tmp_path / "b.npz", "--from", "npz").exit_code == ExitCode.BAD_INPUT


def vllm(folder):
    memory = io.BytesIO()
    np.save(memory, IDS)
    text = base64.b64encode(memory.getvalue()).decode()
    (folder / "a.json").write_text(json.dumps({"choices": [{"routed_experts": text}]}))
    return folder / "a.json", ("--num-experts", 8)


def sglang(folder):
    text = base64.b64encode(IDS.tobytes()).decode()
    (folder / "a.json").write_text(json.dumps({"meta_info": {"routed_experts": text}}))
    return folder / "a.json", ("--num-experts", 8, "--hidden-layers", 3, "--top-k", 3)


def sglang_raw(folder):
    (folder / "a.bin").write_bytes(IDS.tobytes())
    words = ("--num-experts", 8, "--hidden-layers", 3, "--moe-layers", "1-2", "--top-k", 3, "--from", "sglang_routed")
    return folder / "a.bin", words


@pytest.mark.parametrize("write", [vllm, sglang, sglang_raw])
def test_routed_experts_of_every_engine(run, tmp_path, write):
    pytest.importorskip("pyarrow")
    path, words = write(tmp_path)
    result = run("trace", "convert", path, tmp_path / "trace.parquet", *words)
    assert result.exit_code == 0, result.stderr
    trace = read_trace(tmp_path / "trace.parquet")
    assert trace.shape == ModelShape(2, 8, 3, moe_layer_ids=(1, 2), num_hidden_layers=3)
    np.testing.assert_array_equal(joined(trace)["expert_ids"], IDS[:, 1:])
    assert run("trace", "convert", path, tmp_path / "load.npz", *words).exit_code == 0
    assert read_load(tmp_path / "load.npz") == trace.load()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--num-experts", 8), ExitCode.BAD_INPUT, "top_k (--top-k)"),
        (("--num-experts", 8, "--hidden-layers", 3), ExitCode.BAD_INPUT, "top_k (--top-k)"),
        (("--num-experts", 8, "--top-k", 3), ExitCode.BAD_INPUT, "give num_hidden_layers (--hidden-layers)"),
        (("--hidden-layers", 3, "--top-k", 3), ExitCode.BAD_INPUT, "give num_experts (--num-experts)"),
        (("--moe-layers", "1-x", "--num-experts", 8), ExitCode.USAGE, "expected ids as in 3-60"),
        (("--num-experts", 8, "--hidden-layers", 7, "--top-k", 3), ExitCode.BAD_INPUT, "expected a multiple of 84"),
    ],
)
def test_words_that_do_not_say_the_model_are_refused(run, tmp_path, words, code, message):
    path, _ = sglang_raw(tmp_path)
    result = run("trace", "convert", path, tmp_path / "trace.parquet", "--from", "sglang_routed", *words)
    assert result.exit_code == code
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert not (tmp_path / "trace.parquet").exists()


def test_a_trace_with_packed_ids_holds_the_same_tokens(run, tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    options = ("--num-experts", SMALL.num_experts, "--moe-layers", "1,2")
    np.save(tmp_path / "ids.npy", IDS[:, 1:])
    for layout in ("list", "packed"):
        result = run(
            "trace", "convert", tmp_path / "ids.npy", tmp_path / f"{layout}.parquet", "--layout", layout, *options
        )
        assert result.exit_code == 0, result.stderr
    assert str(pq.read_schema(tmp_path / "packed.parquet").field("expert_ids").type) == "fixed_size_binary[6]"
    again = run("trace", "convert", tmp_path / "packed.parquet", tmp_path / "again.parquet")
    assert again.exit_code == 0, again.stderr
    assert (tmp_path / "again.parquet").read_bytes() == (tmp_path / "list.parquet").read_bytes()
    merged = ("trace", "merge", tmp_path / "list.parquet", tmp_path / "packed.parquet", "--combine", "sum")
    assert run(*merged, "--layout", "packed", "-o", tmp_path / "both.parquet").exit_code == 0
    assert read_trace(tmp_path / "both.parquet").load().total.sum() == 2 * IDS[:, 1:].size


def test_a_layout_of_a_load_is_refused(run, tmp_path):
    np.save(tmp_path / "ids.npy", IDS[:, 1:])
    words = ("trace", "convert", tmp_path / "ids.npy", tmp_path / "load.npz", "--num-experts", SMALL.num_experts)
    result = run(*words, "--moe-layers", "1,2", "--layout", "packed")
    assert result.exit_code == ExitCode.USAGE
    assert "--layout" in result.stderr
    assert "has no effect on a load" in result.stderr
    assert not (tmp_path / "load.npz").exists()
