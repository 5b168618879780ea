"""Loading: each slot gets its expert from every dialect, nothing else is read, and a broken checkpoint is named."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")

from eplb.core.placement import Placement  # noqa: E402
from eplb.core.topology import Topology  # noqa: E402
from eplb.runtime.exchange.rank_group import RankGroup  # noqa: E402
from eplb.runtime.exchange.reference import Reference  # noqa: E402
from eplb.runtime.layer.gate import SoftmaxGate  # noqa: E402
from eplb.runtime.layer.moe_layer import MoeLayer  # noqa: E402
from eplb.runtime.layer.placement_tables import PlacementTables  # noqa: E402
from eplb.runtime.layer.replica_choice import TokenSource  # noqa: E402
from eplb.runtime.weights.checkpoint import CheckpointError, SafetensorsCheckpoint, StateDict, detect_layout  # noqa: E402
from eplb.runtime.weights.expert_weights import ExpertWeights, ExpertWeightsShape  # noqa: E402
from eplb.runtime.weights.quantization import Fp4Blocks, Fp8Blocks  # noqa: E402
from eplb.runtime.weights.weight_loading import load_experts, slot_experts  # noqa: E402

HIDDEN, INNER, EXPERTS = 160, 32, 4
LAYER_IDS = (1, 3)
# Rank 1 holds expert 2 twice and an empty slot in the first layer.
MAP = [[0, 1, 3, 2, 2, -1], [3, 2, 1, 0, 3, 1]]
DIALECTS = ["mixtral", "qwen_moe", "qwen_moe_fused", "deepseek"]


def _experts(num_experts=EXPERTS):
    """{layer id: (gate and up [E, 2, I, H], down [E, H, I])}."""
    generator = torch.Generator().manual_seed(0)
    return {
        layer: (
            torch.randn(num_experts, 2, INNER, HIDDEN, generator=generator),
            torch.randn(num_experts, HIDDEN, INNER, generator=generator),
        )
        for layer in LAYER_IDS
    }


def _state_dict(dialect, num_experts=EXPERTS):
    tensors = {"model.embed_tokens.weight": torch.zeros(2, 2), "model.layers.0.mlp.gate_proj.weight": torch.zeros(1)}
    for layer, (gate_up, down) in _experts(num_experts).items():
        if dialect == "qwen_moe_fused":
            stem = f"model.layers.{layer}.mlp.experts"
            tensors |= {f"{stem}.gate_up_proj": gate_up.flatten(1, 2), f"{stem}.down_proj": down}
            continue
        words = ("w1", "w3", "w2") if dialect == "mixtral" else ("gate_proj", "up_proj", "down_proj")
        block = "block_sparse_moe" if dialect == "mixtral" else "mlp"
        for expert in range(num_experts):
            for word, matrix in zip(words, (*gate_up[expert], down[expert]), strict=True):
                name = f"model.layers.{layer}.{block}.experts.{expert}.{word}.weight"
                if dialect == "deepseek":
                    stored = Fp8Blocks().encode(matrix)
                    tensors |= {name: stored["weight"], f"{name}_scale_inv": stored["scale"]}
                else:
                    tensors[name] = matrix.clone()
    return tensors


def _placement():
    return Placement(MAP, EXPERTS, Topology(1, 2, 3))


def _expert_weights(codec=None, dtype=torch.float32):
    shape = ExpertWeightsShape(num_layers=2, num_slots=3, hidden_size=HIDDEN, intermediate_size=INNER)
    return ExpertWeights(shape, codec, compute_dtype=dtype)


def _load(weights, source, rank=1):
    load_experts(weights, source, slot_experts(_placement(), rank), EXPERTS, layer_ids=LAYER_IDS)


class _CountingSource:
    """A source that remembers what was read."""

    def __init__(self, inner):
        self._inner, self.place, self.reads = inner, inner.place, []
        self.names, self.length = inner.names, inner.length

    def read(self, name):
        self.reads.append(name)
        return self._inner.read(name)

    def read_entry(self, name, index):
        self.reads.append((name, index))
        return self._inner.read_entry(name, index)


def test_the_mapping_is_the_rank_s_part_of_the_placement():
    assert slot_experts(_placement(), 0).tolist() == [[0, 1, 3], [3, 2, 1]]
    assert slot_experts(_placement(), 1).tolist() == [[2, 2, -1], [0, 3, 1]]


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_slot_holds_its_expert(dialect, rank):
    weights = _expert_weights()
    _load(weights, StateDict(_state_dict(dialect)), rank)

    for layer, row in enumerate(slot_experts(_placement(), rank).tolist()):
        gate_up, down = _experts()[LAYER_IDS[layer]]
        for slot, expert in enumerate(row):
            held_gate_up, held_down = weights.dense(layer, slot)
            if expert == -1:
                assert not held_gate_up.any()
                assert not held_down.any()
            elif dialect == "deepseek":  # FP8 keeps 3 bits: half a step is 2**-4
                assert torch.allclose(held_gate_up, gate_up[expert], rtol=2**-4, atol=0.01)
                assert torch.allclose(held_down, down[expert], rtol=2**-4, atol=0.01)
            else:
                assert torch.equal(held_gate_up, gate_up[expert])
                assert torch.equal(held_down, down[expert])


def test_fp8_goes_into_fp8_weights_bit_for_bit():
    tensors = _state_dict("deepseek")
    weights = _expert_weights(Fp8Blocks())
    _load(weights, StateDict(tensors))

    held = weights.slot_parts(1, 1)  # layer 3, expert 3
    stem = "model.layers.3.mlp.experts.3"
    assert torch.equal(held["gate_up.scale"][0], tensors[f"{stem}.gate_proj.weight_scale_inv"])
    up = tensors[f"{stem}.up_proj.weight"]
    assert torch.equal(held["gate_up.weight"][1].view(torch.uint8), up.view(torch.uint8))


@pytest.mark.parametrize("codec", [Fp8Blocks(), Fp4Blocks()], ids=["fp8", "fp4"])
def test_dense_matrices_are_encoded_as_the_weights_store(codec):
    weights, dense = _expert_weights(codec), _expert_weights()
    _load(weights, StateDict(_state_dict("qwen_moe")))
    _load(dense, StateDict(_state_dict("qwen_moe")))
    for part, expected in codec.encode(dense.dense(1, 0)[1]).items():
        assert torch.equal(weights.slot_parts(1, 0)[f"down.{part}"].view(torch.uint8), expected.view(torch.uint8))


@pytest.mark.parametrize("dialect", DIALECTS)
def test_only_held_experts_are_read_and_each_once(dialect):
    source = _CountingSource(StateDict(_state_dict(dialect)))
    _load(_expert_weights(), source)
    # Layer 1: expert 2 (held twice); layer 3: experts 0, 1 and 3. Two entries each if fused, else three; scales double.
    assert len(source.reads) == len(set(source.reads)) == 4 * {"qwen_moe_fused": 2, "deepseek": 6}.get(dialect, 3)
    if dialect == "qwen_moe_fused":
        assert {index for name, index in source.reads if ".3." in name} == {0, 1, 3}


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("kind", ["file", "folder", "sharded"])
def test_safetensors_and_state_dict_give_equal_weights(tmp_path, dialect, kind):
    tensors = _state_dict(dialect)
    if kind == "sharded":
        names = list(tensors)
        file_of = {name: f"model-0000{1 + i % 3}-of-00003.safetensors" for i, name in enumerate(names)}
        for file in set(file_of.values()):
            shard = {name: tensors[name].contiguous() for name in names if file_of[name] == file}
            safetensors_torch.save_file(shard, tmp_path / file)
        index = {"metadata": {}, "weight_map": file_of}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    else:
        safetensors_torch.save_file({n: t.contiguous() for n, t in tensors.items()}, tmp_path / "model.safetensors")
    path = tmp_path / "model.safetensors" if kind == "file" else tmp_path

    weights, expected = _expert_weights(), _expert_weights()
    _load(weights, SafetensorsCheckpoint(path))
    _load(expected, StateDict(tensors))
    for layer in range(2):
        for slot in range(3):
            assert weights.fingerprint(layer, slot) == expected.fingerprint(layer, slot)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_dialect_is_detected_from_names(dialect):
    assert detect_layout(StateDict(_state_dict(dialect))).name == dialect


def _without(name):
    return lambda tensors: tensors.pop(name)


def _with(name, *shape):
    return lambda tensors: tensors.update({name: torch.zeros(shape)})


STEM = "model.layers.3.mlp.experts"


@pytest.mark.parametrize(
    ("dialect", "break_it", "message"),
    [
        ("qwen_moe", _without(f"{STEM}.3.up_proj.weight"), f"tensor {STEM}.3.up_proj.weight is missing"),
        ("qwen_moe", _with(f"{STEM}.4.up_proj.weight", 1), f"{STEM}.4.up_proj.weight is left over, the model has 4"),
        ("qwen_moe", _with(f"{STEM}.0.up_proj.bias", 1), f"{STEM}.0.up_proj.bias is left over"),
        (
            "qwen_moe",
            _with(f"{STEM}.1.up_proj.weight", 2, 3),
            r"1.up_proj.weight has shape \(2, 3\): expected \(32, 160\)",
        ),
        ("qwen_moe_fused", _with(f"{STEM}.down_proj", 5, 160, 32), "down_proj holds 5 experts: expected 4"),
        ("qwen_moe_fused", _with(f"{STEM}.down_proj", 4, 160, 31), r"down_proj has shape \(160, 31\): expected"),
        ("qwen_moe_fused", _without(f"{STEM}.down_proj"), "down_proj is missing"),
        (
            "deepseek",
            _without(f"{STEM}.3.up_proj.weight_scale_inv"),
            "up_proj.weight_scale_inv is missing,.* torch.float8",
        ),
        ("deepseek", _with(f"{STEM}.3.up_proj.weight", 32, 160), "weight_scale_inv is left over,.* torch.float32"),
        (
            "deepseek",
            _with(f"{STEM}.3.down_proj.weight_scale_inv", 1, 1),
            r"scale_inv has shape \(1, 1\): expected \(2, 1\)",
        ),
    ],
)
def test_broken_checkpoints_are_named(dialect, break_it, message):
    tensors = _state_dict(dialect)
    break_it(tensors)
    with pytest.raises(CheckpointError, match=message):
        _load(_expert_weights(), StateDict(tensors))


def test_a_gate_with_a_scale_beside_an_up_without_one_is_refused():
    tensors = _state_dict("deepseek")
    tensors[f"{STEM}.3.up_proj.weight"] = torch.zeros(INNER, HIDDEN)
    del tensors[f"{STEM}.3.up_proj.weight_scale_inv"]
    with pytest.raises(CheckpointError, match="only one has a scale"):
        _load(_expert_weights(), StateDict(tensors))


def test_a_checkpoint_without_experts_is_refused():
    with pytest.raises(CheckpointError, match="state dict: no experts found, expected names of mixtral, qwen_moe"):
        _load(_expert_weights(), StateDict({"model.norm.weight": torch.ones(1)}))


def test_weights_of_other_sizes_are_refused():
    with pytest.raises(CheckpointError, match="expected \\(2, 3\\) as in the expert weights"):
        load_experts(_expert_weights(), StateDict({}), np.zeros((1, 3), np.int32), EXPERTS, layer_ids=(1,))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "expected a safetensors file or a folder of them"),
        ({"model.safetensors": "no"}, "model.safetensors: not a safetensors file"),
        ({"model.safetensors.index.json": "{}"}, "expected an object weight_map"),
        (
            {"model.safetensors.index.json": '{"weight_map": {"a": "b.safetensors"}}'},
            "the file b.safetensors named in weight_map does not exist",
        ),
    ],
)
def test_folders_without_a_checkpoint_are_refused(tmp_path, files, message):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(CheckpointError, match=message):
        SafetensorsCheckpoint(tmp_path)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-8]), "tensor b cannot be read: .*not fully covered"),
        (lambda file: file.write_bytes(b""), "tensor b cannot be read: .*too small"),
        (lambda file: file.unlink(), "tensor b cannot be read: .*"),
        (lambda file: file.write_bytes(file.with_name("one.safetensors").read_bytes()), "does not contain tensor b"),
    ],
)
def test_a_shard_that_is_broken_or_lacks_a_tensor_of_the_index_is_named(tmp_path, broken, message):
    save_file = pytest.importorskip("safetensors.torch").save_file
    for name, file in (("a", "one.safetensors"), ("b", "two.safetensors")):
        save_file({name: torch.ones(4)}, tmp_path / file)
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    checkpoint = SafetensorsCheckpoint(tmp_path)
    broken(tmp_path / "two.safetensors")
    assert checkpoint.read("a").sum() == 4
    for read in (checkpoint.read, checkpoint.length, lambda name: checkpoint.read_entry(name, 0)):
        with pytest.raises(CheckpointError, match=f"two.safetensors: .*{message}"):
            read("b")


def test_a_tensor_in_two_files_without_an_index_is_refused(tmp_path):
    save_file = pytest.importorskip("safetensors.torch").save_file
    for file in ("ema.safetensors", "model.safetensors"):
        save_file({"a": torch.ones(4)}, tmp_path / file)
    with pytest.raises(CheckpointError, match=r"a is in ema\.safetensors and in model\.safetensors: expected it once"):
        SafetensorsCheckpoint(tmp_path)


@pytest.mark.parametrize("num_tokens", [1, 17])
def test_our_layer_equals_the_qwen3_moe_block_of_transformers(num_tokens):
    modeling = pytest.importorskip("transformers.models.qwen3_moe.modeling_qwen3_moe")
    config = modeling.Qwen3MoeConfig(
        hidden_size=32, moe_intermediate_size=16, num_experts=8, num_experts_per_tok=3, norm_topk_prob=True
    )
    config._experts_implementation = "eager"
    torch.manual_seed(0)
    block = modeling.Qwen3MoeSparseMoeBlock(config)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(num_tokens, 32)

    # Two ranks of six slots, executed by one process: every expert somewhere, four of them twice.
    placement = Placement([[0, 1, 2, 3, 4, 5, 6, 7, 0, 2, 4, 6]], 8, Topology(1, 2, 6))
    weights = ExpertWeights(
        ExpertWeightsShape(num_layers=1, num_slots=12, hidden_size=32, intermediate_size=16),
        compute_dtype=torch.float32,
    )
    tensors = {f"model.layers.0.mlp.{name}": tensor for name, tensor in block.state_dict().items()}
    load_experts(weights, StateDict(tensors), placement.physical_to_logical_map, 8, layer_ids=(0,))
    group = RankGroup(placement.topology)
    gate = SoftmaxGate(block.gate.weight.detach(), top_k=3)
    layer = MoeLayer(0, gate, PlacementTables(placement), group, Reference(group), weights)
    source = TokenSource.consecutive(0, [num_tokens // 2, num_tokens - num_tokens // 2], "cpu")
    y = layer(x, torch.zeros(num_tokens, dtype=torch.int64), source).y_TH

    with torch.no_grad():
        expected = block(x[None])[0]
    assert torch.allclose(y, expected, atol=1e-5)
