"""ExpertWeights: both paths against a plain reference, unused rows, fixed addresses, and fingerprints that differ."""

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from eplb.errors import InputError  # noqa: E402
from eplb.runtime.weights.expert_weights import ExpertWeights, ExpertWeightsShape, GateUpLayout  # noqa: E402
from eplb.runtime.weights.quantization import Dense, Fp4Blocks, Fp8Blocks  # noqa: E402

HIDDEN, INNER = 32, 64


def _expert_weights(num_slots, codec=None, dtype=torch.float32, hidden=HIDDEN, inner=INNER, seed=0):
    shape = ExpertWeightsShape(num_layers=2, num_slots=num_slots, hidden_size=hidden, intermediate_size=inner)
    weights = ExpertWeights(shape, codec, compute_dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    for layer in range(2):
        for slot in range(num_slots):
            gate_up = torch.randn(2, inner, hidden, generator=generator) / 8
            weights.write_dense(layer, slot, gate_up, torch.randn(hidden, inner, generator=generator) / 8)
    return weights


def _reference(weights, layer, x, counts):
    """Row by row in float64."""
    rows = []
    for row, slot in zip(x, [s for s, count in enumerate(counts) for _ in range(count)], strict=False):
        gate_up, down = (matrix.double() for matrix in weights.dense(layer, slot))
        gate, up = gate_up[0] @ row.double(), gate_up[1] @ row.double()
        rows.append(down @ (gate / (1 + torch.exp(-gate)) * up))
    unused = torch.zeros(x.shape[0] - len(rows), x.shape[1], dtype=torch.float64)
    return torch.cat([torch.stack(rows) if rows else unused[:0], unused])


@settings(max_examples=25)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=5), st.integers(0, 3))
def test_both_paths_equal_the_reference_for_any_counts(counts, num_unused):
    weights = _expert_weights(len(counts))
    x = torch.randn(sum(counts) + num_unused, HIDDEN, generator=torch.Generator().manual_seed(7))
    x[sum(counts) :] = float("nan")  # unused rows may hold anything
    expected = _reference(weights, 1, x, counts)
    assert weights.has_grouped_path
    for y in (weights.forward(1, x, torch.tensor(counts)), weights.looped(1, x, torch.tensor(counts))):
        assert y.shape == x.shape
        assert torch.allclose(y.double(), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("codec", "dtype"),
    [
        (None, torch.bfloat16),
        (Dense(torch.bfloat16), torch.float32),
        (Fp8Blocks(), torch.float32),
        (Fp8Blocks(), torch.bfloat16),
        (Fp4Blocks(), torch.float32),
    ],
    ids=["bf16", "bf16-in-fp32", "fp8-in-fp32", "fp8-in-bf16", "fp4-in-fp32"],
)
def test_every_storage_computes_with_its_decoded_weights(codec, dtype):
    weights, counts = _expert_weights(3, codec, dtype), [4, 0, 2]
    x = torch.randn(6, HIDDEN, generator=torch.Generator().manual_seed(1)).to(dtype)
    y = weights.forward(0, x, torch.tensor(counts, dtype=torch.int32))
    assert y.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    assert torch.allclose(y.double(), _reference(weights, 0, x, counts), atol=tolerance, rtol=tolerance)


def test_unaligned_widths_use_the_loop():
    weights = _expert_weights(2, hidden=6, inner=10)  # 24 and 40 bytes a row, no multiples of 16
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(2))
    assert not weights.has_grouped_path
    assert torch.allclose(
        weights.forward(0, x, torch.tensor([2, 3])).double(), _reference(weights, 0, x, [2, 3]), atol=1e-5
    )


def test_a_large_gate_makes_integers_exact():
    # silu(128 n) is 128 n for n >= 0 and 0 below, in float32: e**-128 vanishes. So integer weights give integer rows.
    weights = _expert_weights(1)
    gate = 128.0 * torch.randint(-1, 2, (INNER, HIDDEN), generator=torch.Generator().manual_seed(3))
    up = torch.randint(-1, 2, (INNER, HIDDEN), generator=torch.Generator().manual_seed(4)).float()
    weights.write_dense(0, 0, torch.stack([gate, up]), torch.ones(HIDDEN, INNER))
    x = torch.randint(-1, 2, (4, HIDDEN), generator=torch.Generator().manual_seed(5)).float()
    expected = (((x @ gate.T).clamp(min=0) * (x @ up.T)).sum(-1, keepdim=True)).expand(4, HIDDEN)
    assert torch.equal(weights.forward(0, x, torch.tensor([4])), expected)
    assert torch.equal(weights.looped(0, x, torch.tensor([4])), expected)


def test_no_rows():
    weights = _expert_weights(2)
    assert weights.forward(0, torch.empty(0, HIDDEN), torch.tensor([0, 0])).shape == (0, HIDDEN)


def test_writing_keeps_every_address():
    weights = _expert_weights(3)
    addresses = {name: part.data_ptr() for name, part in weights.layer_parts(1).items()}
    weights.write_dense(1, 2, torch.ones(2, INNER, HIDDEN), torch.ones(HIDDEN, INNER))
    weights.write_parts(1, 0, {name: part.clone() for name, part in weights.slot_parts(1, 2).items()})
    assert {name: part.data_ptr() for name, part in weights.layer_parts(1).items()} == addresses
    assert weights.dense(1, 0)[0].eq(1).all()


@pytest.mark.parametrize(("codec", "num_bytes"), [(Dense(torch.float32), 4), (Dense(torch.bfloat16), 2)])
def test_expert_bytes_of_dense_weights(codec, num_bytes):
    assert _expert_weights(1, codec).expert_bytes == 3 * HIDDEN * INNER * num_bytes


def test_expert_bytes_count_scales():
    # FP4: half a byte each and a scale byte for 32; FP8: a byte each and 4 bytes for each matrix's one block.
    assert _expert_weights(1, Fp4Blocks()).expert_bytes == 3 * HIDDEN * INNER // 2 + 3 * HIDDEN * INNER // 32
    assert _expert_weights(1, Fp8Blocks()).expert_bytes == 3 * HIDDEN * INNER + 3 * 4


@pytest.mark.parametrize("codec", [None, Fp8Blocks(), Fp4Blocks()], ids=["dense", "fp8", "fp4"])
def test_fingerprints_differ_for_experts_and_are_equal_for_replicas(codec):
    weights = _expert_weights(3, codec)
    weights.write_parts(0, 2, weights.slot_parts(0, 1))
    prints = [weights.fingerprint(0, slot) for slot in range(3)]
    assert prints[1] == prints[2]
    assert prints[0] != prints[1]
    assert all(0 <= value < 2**64 for value in prints)
    assert weights.fingerprints(0, 1).keys() == weights.layer_parts(0).keys()


@pytest.mark.parametrize("codec", [None, Fp8Blocks(), Fp4Blocks()], ids=["dense", "fp8", "fp4"])
def test_one_flipped_bit_or_two_swapped_bytes_change_the_fingerprint(codec):
    weights = _expert_weights(1, codec)
    before = weights.fingerprint(0, 0)
    for part in weights.slot_parts(0, 0).values():
        data = part.view(-1).view(torch.uint8)
        data[-1] ^= 1
        assert weights.fingerprint(0, 0) != before
        data[-1] ^= 1
        assert weights.fingerprint(0, 0) == before
        swap = [0, next(i for i in range(1, data.numel()) if data[i] != data[0])] if data.unique().numel() > 1 else []
        data[swap] = data[swap].flip(0)
        assert (weights.fingerprint(0, 0) == before) == (not swap)
        data[swap] = data[swap].flip(0)


def test_swapped_parts_change_the_fingerprint():
    shape = ExpertWeightsShape(num_layers=1, num_slots=2, hidden_size=4, intermediate_size=4)
    weights = ExpertWeights(shape, compute_dtype=torch.float32)
    one, two = torch.full((4, 4), 1.0), torch.full((4, 4), 2.0)
    weights.write_dense(0, 0, torch.stack([one, two]), one)
    weights.write_dense(0, 1, torch.stack([two, one]), one)
    assert weights.fingerprint(0, 0) != weights.fingerprint(0, 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda b: b.forward(0, torch.zeros(1, 8), torch.tensor([1, 0])),
            "of width 8: expected torch.float32 of width",
        ),
        (lambda b: b.forward(0, torch.zeros(1, HIDDEN).bfloat16(), torch.tensor([1, 0])), "rows are torch.bfloat16"),
        (lambda b: b.forward(0, torch.zeros(1, HIDDEN), torch.tensor([1])), r"rows_per_slot has shape \(1,\)"),
        (lambda b: b.slot_parts(2, 0), "layer = 2: expected 0 <= layer < 2"),
        (lambda b: b.slot_parts(0, -1), "slot = -1: expected 0 <= slot < 2"),
        (lambda b: b.write_parts(0, 0, {"gate": torch.zeros(1)}), "part 'gate': expected one of gate_up.weight"),
        (lambda b: b.write_parts(0, 0, {"down.weight": torch.zeros(1)}), r"down.weight is torch.float32 \(1,\)"),
        (lambda b: b.write_dense(0, 0, torch.zeros(2, 1, 1), torch.zeros(1, 1)), r"gate_up has shape \(2, 1, 1\)"),
    ],
)
def test_wrong_calls_are_named(call, message):
    with pytest.raises(InputError, match=message):
        call(_expert_weights(2))


def test_an_empty_shape_is_refused():
    with pytest.raises(InputError, match="num_slots = 0: expected >= 1"):
        ExpertWeightsShape(num_layers=1, num_slots=0, hidden_size=1, intermediate_size=1)


def _interleaved(num_slots, **options):
    shape = ExpertWeightsShape(num_layers=1, num_slots=num_slots, hidden_size=HIDDEN, intermediate_size=INNER)
    return ExpertWeights(shape, compute_dtype=torch.float32, layout=GateUpLayout.INTERLEAVED, **options)


def test_interleaved_rows_alternate_by_eights_and_compute_the_same():
    split_weights, weights = _expert_weights(2), _interleaved(2)
    for slot in range(2):
        weights.write_dense(0, slot, *split_weights.dense(0, slot))
        gate_up, _ = split_weights.dense(0, slot)
        rows = weights.slot_parts(0, slot)["gate_up.weight"].flatten(0, 2)
        for row in (0, 7, 8, 31):  # row r of gate is stored at 16 * (r // 8) + r % 8, of up eight later
            assert torch.equal(rows[16 * (row // 8) + row % 8], gate_up[0, row])
            assert torch.equal(rows[16 * (row // 8) + row % 8 + 8], gate_up[1, row])
        for found, expected in zip(weights.dense(0, slot), split_weights.dense(0, slot), strict=True):
            assert torch.equal(found, expected)
    x, rows = torch.randn(5, HIDDEN, generator=torch.Generator().manual_seed(1)), torch.tensor([2, 3])
    assert torch.equal(weights.forward(0, x, rows), split_weights.forward(0, x, rows))
    assert torch.allclose(weights.looped(0, x, rows), weights.forward(0, x, rows), atol=1e-5)
    # Parts in another order than that of the layout have another shape, so that they cannot be written by mistake.
    with pytest.raises(InputError, match=r"gate_up\.weight is torch\.float32"):
        weights.write_parts(0, 0, split_weights.slot_parts(0, 0))
    weights.write_parts(0, 0, weights.in_layout(split_weights.slot_parts(0, 1)))
    assert torch.equal(weights.dense(0, 0)[0], split_weights.dense(0, 1)[0])


def test_weights_that_cannot_be_interleaved_are_refused():
    with pytest.raises(InputError, match="interleaved with fp8 weights"):
        _interleaved(1, codec=Fp8Blocks())
    shape = ExpertWeightsShape(num_layers=1, num_slots=1, hidden_size=8, intermediate_size=12)
    with pytest.raises(InputError, match="intermediate_size = 12"):
        ExpertWeights(shape, layout=GateUpLayout.INTERLEAVED)
