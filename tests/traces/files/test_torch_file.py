"""Files of torch.save are read without torch as torch reads them, and nothing in them runs."""

import io
import pickle
import sys
import zipfile

import numpy as np
import pytest

from eplb_traces import InputError
from eplb_traces.files.torch_file import read_torch

torch = pytest.importorskip("torch")

INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64]
TYPES = [*INTEGERS, torch.bool, torch.float16, torch.float32, torch.float64, torch.bfloat16]
HEAD = b"\x80\x02"


def saved(document):
    stream = io.BytesIO()
    torch.save(document, stream)
    return stream.getvalue()


def ours(content):
    return read_torch(io.BytesIO(content))


def theirs(content):
    return torch.load(io.BytesIO(content), weights_only=True)


def with_members(content, **changed):
    """The same archive with other members, checksums corrected; a name of None is left out."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(stream, "w") as new:
        for name in old.namelist():
            short = name.partition("/")[2].replace("/", "_").replace(".pkl", "")
            if changed.get(short, b"") is not None:
                new.writestr(name, changed.get(short, old.read(name)))
    return stream.getvalue()


def pickle_of(content):
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return archive.read("archive/data.pkl")


def only_pickle(content):
    return with_members(saved(1), data=HEAD + content)


def same(found, expected):
    """Whether our value is torch's: tensors by kind, shape and every number."""
    if isinstance(expected, torch.Tensor):
        if expected.dtype is torch.bfloat16:
            expected = expected.float()
        expected = expected.detach().numpy()
        is_alike = isinstance(found, np.ndarray) and (found.dtype, found.shape) == (expected.dtype, expected.shape)
        return is_alike and found.tobytes() == np.ascontiguousarray(expected).tobytes()
    if isinstance(expected, dict):
        is_alike = isinstance(found, dict) and list(found) == list(expected)
        return is_alike and all(same(found[key], expected[key]) for key in expected)
    if isinstance(expected, list | tuple):
        is_alike = isinstance(found, list | tuple) and len(found) == len(expected)
        return is_alike and all(map(same, found, expected))
    return type(found) is type(expected) and (found == expected or found != found)


def random_tensor(rng):
    shape = tuple(rng.integers(0, 5, rng.integers(0, 4)).tolist())
    dtype = TYPES[rng.integers(len(TYPES))]
    tensor = torch.from_numpy(np.asarray(rng.integers(0, 200, shape))).to(dtype)
    if tensor.dim() and rng.random() < 0.5:
        tensor = tensor.transpose(0, -1)
    if tensor.dim() and rng.random() < 0.5:
        tensor = tensor[int(rng.integers(0, tensor.shape[0] + 1)) :: int(rng.integers(1, 3))]
    if dtype.is_floating_point and rng.random() < 0.2:
        return torch.nn.Parameter(tensor)
    return tensor


def random_document(rng, depth=0):
    kind = int(rng.integers(12 if depth < 4 else 9))
    if kind >= 9:
        parts = [random_document(rng, depth + 1) for _ in range(rng.integers(4))]
        keys = [f"k{i}" if rng.random() < 0.8 else i for i in range(len(parts))]
        return [parts, tuple(parts), dict(zip(keys, parts, strict=True))][kind - 9]
    plain = [None, True, False, int(rng.integers(-(2**40), 2**40)), float(rng.normal()), "text é", 2**62]
    return random_tensor(rng) if kind < 5 or depth == 0 else plain[int(rng.integers(len(plain)))]


@pytest.mark.parametrize("part", range(4))
def test_random_documents_are_read_as_torch_reads_them(part):
    num_tensors = 0
    for seed in range(part * 100, part * 100 + 100):
        rng = np.random.default_rng(seed)
        document = {"first": random_tensor(rng), "more": [random_document(rng) for _ in range(3)]}
        document["again"] = document["first"]  # one tensor under two names
        content = saved(document)
        num_tensors += content.count(b"rebuild_tensor")
        assert same(ours(content), theirs(content)), f"seed {seed}"
    assert num_tensors > 100


def test_the_comparison_sees_other_numbers_types_and_keys():
    one = saved({"a": torch.ones(2)})
    for other in ({"a": torch.zeros(2)}, {"a": torch.ones(2).double()}, {"b": torch.ones(2)}, [torch.ones(2)]):
        assert not same(ours(one), other)


def test_storages_of_big_endian_machines_are_read():
    counts = torch.arange(6, dtype=torch.int32).reshape(2, 3)
    content = with_members(saved(counts), data_0=counts.numpy().astype(">i4").tobytes(), byteorder=b"big")
    assert same(ours(content), counts)
    with pytest.raises(InputError, match="byteorder is b'middle': expected little or big"):
        ours(with_members(saved(counts), byteorder=b"middle"))


def test_torch_is_not_needed(monkeypatch):
    content = saved({"logical_count": torch.ones(2, 3).bfloat16()})
    monkeypatch.setitem(sys.modules, "torch", None)
    np.testing.assert_array_equal(ours(content)["logical_count"], np.ones((2, 3), np.float32))


def test_arrays_cannot_be_written_to():
    for tensor in (torch.ones(3), torch.ones(3).bfloat16()):
        with pytest.raises(ValueError, match="read-only"):
            ours(saved(tensor))[...] = 2


def test_the_older_form_is_refused_with_the_way_out():
    stream = io.BytesIO()
    torch.save(torch.ones(2), stream, _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match=r"before torch 1\.6, a bare pickle, is not read: save it again"):
        ours(stream.getvalue())


def view(offset=0, shape=(2,), strides=(1,), **replaced):
    """A pickle of a tensor of two float32, with another place in its storage."""

    class Tensor:
        def __reduce__(self):
            call = torch._utils._rebuild_tensor_v2
            return call, (Reference(), offset, shape, strides, False, {}, *replaced.values())

    class Reference:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return ("storage", torch.FloatStorage, "0", "cpu", 2) if isinstance(value, Reference) else None

    stream = io.BytesIO()
    Pickler(stream, 2).dump(Tensor())
    return with_members(saved(torch.tensor([1.0, 2.0])), data=stream.getvalue())


def test_the_view_is_otherwise_read():
    assert same(ours(view()), torch.tensor([1.0, 2.0]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (view(shape=(10**9,), strides=(0,)), r"shape \(1000000000,\), 1000000000 numbers, and holds 2"),
        (view(shape=(10**9, 10**9, 10**9), strides=(0, 0, 0)), "numbers, and holds 2"),
        (view(offset=1), "has a number at 2: the storage has 2"),
        (view(strides=(2,)), "has a number at 2: the storage has 2"),
        (view(shape=(1,), offset=2**62), "has a number at"),
        (view(offset=-1), "offset -1"),
        (view(strides=(-1,)), r"strides \(-1,\)"),
        (view(shape=(-2,)), r"shape \(-2,\)"),
        (view(strides=(1, 1)), r"strides \(1, 1\)"),
        (view(shape=(0, 2**62, 2**62), strides=(1, 1, 1)), "not a whole file"),
        (view(shape=[[2]]), "not a whole file"),
        (view(shape=(1,) * 100, strides=(0,) * 100), "not a whole file"),
        (view(neg={"neg": True}), "call of torch._utils._rebuild_tensor_v2 .* other arguments"),
        (with_members(saved(torch.ones(2)), data_0=b"1234"), "storage 0 has 4 bytes: expected 8"),
        (with_members(saved(torch.ones(2)), data_0=None), "not a whole file .*archive/data/0"),
        (with_members(saved(torch.ones(2)), data=None), "it has 0 members data.pkl"),
    ],
)
def test_tensors_lie_inside_their_storage(content, message):
    with pytest.raises(InputError, match=message):
        ours(content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"cposix\nsystem\nX\x02\x00\x00\x00ls\x85R.", r"can run any code, and is refused \(posix.system\)"),
        (b"c__builtin__\neval\nX\x01\x00\x00\x001\x85R.", r"refused \(__builtin__.eval\)"),
        (b"ctorch\n" + b"a" * 10**5 + b"\n.", r"holds torch\.a{74}\.\.\.: expected dense"),
        (b"ccollections\nOrderedDict\n)R}b.", "the opcode BUILD at byte"),
        (b"ccollections\nOrderedDict\nK\x01\x85R.", "call of collections.OrderedDict .* other arguments"),
        (b"K\x01)R.", "call of int"),
        (b"]q\x00h\x00a.", "more than 32 levels"),  # a list in itself
        (b"]q\x00" + b"(h\x00h\x00e" * 4 + b".", "more than 32 levels"),
        (b"N" + b"\x85" * 33 + b".", "more than 32 levels"),
        (b"N" + b"\x85" * 10**6 + b".", "more than 32 levels"),
        (b"}N" + b"\x85" * 10**6 + b"Ns.", "a key of a dictionary is a tuple"),
        (b"](Nq\x00" + b"".join(b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(30)) + b"e.", "the document has"),
        (b"Nr\xff\xff\xff\xff.", None),  # a large number of a remembered value costs nothing
        (b"h\x07.", "not a whole file"),
        (b"e.", "not a whole file"),
        (b"0.", "the opcode POP"),
        (b"", "not a whole file"),
        (b"NN.", "not a whole file"),
        (b"X\xff\xff\xff\x7fa.", "not a whole file"),
        (b"K\x01K\x02s.", "not a whole file"),
        (b"K\x01Q.", "a reference in its pickle is not to a storage"),
        (b"\x8a\xff1.", "not a whole file"),
        (b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00N.", "the opcode FRAME"),
    ],
)
def test_pickles_that_torch_does_not_write_are_refused(content, message):
    if message is None:
        assert ours(only_pickle(content)) is None
        return
    with pytest.raises(InputError, match=message) as caught:
        ours(only_pickle(content))
    assert len(str(caught.value)) < 400


def test_archives_that_torch_does_not_write_are_refused():
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", HEAD + b"N.")
    with pytest.raises(InputError, match=r"its member archive/data\.pkl is compressed"):
        ours(stream.getvalue())
    for name, message in (("archive/constants.pkl", "TorchScript"), ("other/data.pkl", "it has 2 members data.pkl")):
        content = io.BytesIO(saved(torch.ones(2)))
        with zipfile.ZipFile(content, "a") as archive:
            archive.writestr(name, b"")
        with pytest.raises(InputError, match=message):
            ours(content.getvalue())


@pytest.mark.filterwarnings("ignore:Detected pickle protocol", "ignore::UserWarning")
@pytest.mark.parametrize("part", range(4))
def test_damaged_pickles_are_refused_or_read_as_torch_reads_them(part):
    """Mutations of the pickle alone, in a whole archive: checksums would hide those of the file."""
    num_read = num_compared = 0
    for seed in range(part * 400, part * 400 + 400):
        rng = np.random.default_rng(seed)
        content = saved({"first": torch.arange(12).reshape(3, 4).float(), "more": [random_document(rng)]})
        damaged = bytearray(pickle_of(content))
        for at in rng.integers(0, len(damaged), rng.integers(1, 4)):
            damaged[at] = rng.choice([damaged[at] ^ 1 << rng.integers(8), *b"\x85\x86\x87()}]RQtaesuhqNK"])
        changed = with_members(content, data=bytes(damaged))
        try:
            found = ours(changed)
        except InputError:
            continue
        num_read += 1
        try:
            expected = theirs(changed)
        except Exception:  # torch refuses more: what is read here is bounded and ran nothing
            continue
        num_compared += 1
        assert same(found, expected), f"seed {seed}"
    assert num_read >= num_compared > 10
