"""Codecs: exact where the format is, otherwise within its rounding; packing as documented."""

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from eplb.errors import InputError  # noqa: E402
from eplb.runtime.weights.quantization import Dense, Fp4Blocks, Fp8Blocks  # noqa: E402

CODECS = [Dense(torch.float32), Fp8Blocks(), Fp4Blocks()]


def _random(seed, *shape):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) * torch.exp2(torch.randint(-6, 7, shape, generator=generator))


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
@pytest.mark.parametrize(("num_rows", "num_columns"), [(1, 32), (130, 96), (128, 256), (257, 160)])
def test_parts_have_the_declared_shapes_with_leading_dimensions(codec, num_rows, num_columns):
    stored = codec.encode(_random(0, 3, 2, num_rows, num_columns))
    announced = codec.parts(num_rows, num_columns)

    assert list(stored) == list(announced)
    assert next(iter(announced)) == "weight"
    for name, tensor in stored.items():
        assert tuple(tensor.shape) == (3, 2, *announced[name].shape)
        assert tensor.dtype == announced[name].dtype
    assert codec.decode(stored, torch.float32).shape == (3, 2, num_rows, num_columns)


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
def test_a_stack_is_stored_like_its_matrices(codec):
    stack = _random(1, 2, 130, 64)
    stored = codec.encode(stack)
    for index in range(2):
        for name, part in codec.encode(stack[index]).items():
            assert torch.equal(part.view(torch.uint8), stored[name][index].view(torch.uint8))


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
def test_zeros_stay_zeros(codec):
    decoded = codec.decode(codec.encode(torch.zeros(4, 64)), torch.bfloat16)
    assert decoded.dtype == torch.bfloat16
    assert not decoded.any()


@settings(max_examples=20)
@given(st.integers(0, 2**20))
def test_fp8_stays_inside_its_rounding(seed):
    weight = _random(seed, 131, 140)
    stored = Fp8Blocks().encode(weight)
    decoded = Fp8Blocks().decode(stored, torch.float32)

    # e4m3 has 3 bits behind the leading one: half a step is 2**-4 of the value; subnormals step by 2**-9.
    scale = stored["scale"].repeat_interleave(128, 0)[:131].repeat_interleave(128, 1)[:, :140]
    allowed = torch.maximum(weight.abs() * 2**-4, scale * 2**-10) * (1 + 1e-5)
    assert ((decoded - weight).abs() <= allowed).all()


def test_fp8_blocks_have_independent_scales():
    weight = torch.ones(130, 200)
    weight[128:, :128] = 448 * 4
    weight[:128, 128:] = 448 / 2
    # Peaks 1, 224, 1792, 1 over 448.
    expected = torch.tensor([[1 / 448, 0.5], [4.0, 1 / 448]])
    assert torch.equal(Fp8Blocks().encode(weight)["scale"], expected)


def test_fp8_decodes_deepseeks_pair():
    weight = torch.tensor([[1.0, -2.0], [0.5, 448.0]]).to(torch.float8_e4m3fn)
    decoded = Fp8Blocks().decode({"weight": weight, "scale": torch.tensor([[0.5]])}, torch.float32)
    assert decoded.tolist() == [[0.5, -1.0], [0.25, 224.0]]


def _nearest_fp4(value):
    """The plain twin: nearest number of e2m1, ties to the even code."""
    numbers = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    code = min(range(8), key=lambda c: (abs(numbers[c] - abs(value)), c % 2))
    return numbers[code] * (-1 if value < 0 else 1)


@given(st.lists(st.integers(-24, 24), min_size=31, max_size=31), st.integers(-40, 40))
def test_fp4_rounds_to_the_nearest_number_with_ties_to_even(quarters, exponent):
    # A peak of 6 keeps the scale at 1, so that quarters meet every tie.
    values = [quarter / 4 for quarter in quarters] + [6.0]
    weight = torch.tensor([values]) * 2.0**exponent
    decoded = Fp4Blocks().decode(Fp4Blocks().encode(weight), torch.float32)
    assert (decoded / 2.0**exponent).tolist() == [[_nearest_fp4(value) for value in values]]


@pytest.mark.parametrize(("peak", "power"), [(6.0, 0), (6.1, 1), (3.0, -1), (3.1, 0), (4.0, 0), (1.0, -2), (96.0, 4)])
def test_fp4_takes_the_least_power_of_two_that_holds_the_peak(peak, power):
    weight = torch.zeros(1, 32)
    weight[0, 7] = -peak
    assert Fp4Blocks().encode(weight)["scale"].tolist() == [[127 + power]]


def test_fp4_packs_even_columns_low():
    weight = torch.zeros(1, 32)
    weight[0, :4] = torch.tensor([6.0, -0.5, 1.5, 2.0])  # codes 7, 8 + 1, 3, 4
    assert Fp4Blocks().encode(weight)["weight"][0, :3].tolist() == [0x97, 0x43, 0]


def test_fp4_reads_the_smallest_scale():
    parts = {"weight": torch.full((1, 16), 0x22, dtype=torch.uint8), "scale": torch.zeros(1, 1, dtype=torch.uint8)}
    assert set(Fp4Blocks().decode(parts, torch.float32).flatten().tolist()) == {2.0**-127}


@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
def test_fp4_refuses_what_it_cannot_hold(number):
    weight = torch.ones(2, 64)
    weight[1, 40] = number
    with pytest.raises(InputError, match="fp4: a weight is not finite"):
        Fp4Blocks().encode(weight)


def test_fp4_refuses_a_ragged_block():
    with pytest.raises(InputError, match="fp4: 48 columns: expected a multiple of the block of 32"):
        Fp4Blocks().encode(torch.zeros(2, 48))


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
def test_encoding_what_was_decoded_changes_nothing(codec):
    once = codec.decode(codec.encode(_random(3, 160, 64)), torch.float32)
    twice = codec.decode(codec.encode(once), torch.float32)
    tolerance = 1e-6 if codec.name == "fp8" else 0.0  # the scale of fp8 is itself rounded
    assert torch.allclose(once, twice, rtol=tolerance, atol=0.0)
