"""Small files that ask for gigabytes, or whose parts contradict each other, are refused without allocating them."""

import contextlib
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from eplb.errors import FormatError
from eplb.formats import read_plan
from eplb_traces import InputError, read_load
from eplb_traces.files.limits import check_size
from eplb_traces.readers import ReadOptions, read

HOSTILE = Path(__file__).resolve().parent / "hostile"
GOLDEN = HOSTILE.parents[1] / "golden"
MOST_BYTES = 1 << 30


def peak_bytes():
    """The largest resident size since it was reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


@pytest.fixture(autouse=True)
def _little_memory():
    """Fail where a test needed more than 1 GiB; Linux resets the largest resident size on request."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        yield
        return
    before = peak_bytes()
    yield
    assert peak_bytes() - before < MOST_BYTES


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bad-central-dir", "not a whole file of torch.save"),
        ("bomb-expand-load.pt", r"shape \(2000, 1000, 200\), 400000000 numbers, and holds 1"),
        ("bomb-long-form.csv", "1 layers x 1 ranks x 300000001 experts are too many"),
        ("bomb-trace.parquet", "4000 x 65536 numbers, the file 1849 bytes"),
        ("crash-long-form.csv", r"column 3 \(expert\) = 9223372036854775807: expected an integer"),
        ("domain-0d.npz", r"domain has shape \(\): expected one for each of"),
        ("dup-column.parquet", "column window is there twice"),
        ("labels-bytes.npz", r"labels is \|S\d of shape \(2,\): expected a list of texts"),
    ],
)
def test_the_file_is_refused_by_name(name, message):
    pytest.importorskip("pyarrow")
    with pytest.raises(InputError, match=f"{name}: .*{message}"):
        read(HOSTILE / name)


def test_a_plan_of_more_experts_than_slots_is_refused():
    with pytest.raises(FormatError, match=r"layer 0\]: expert 8 has no slot"):
        read_plan(HOSTILE / "bomb-native-experts.json")


def npy(dtype, shape, content=b""):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue() + content


@pytest.mark.parametrize(
    ("shape", "dtype", "content"), [((10**6, 10**6, 10), "<i8", b""), ((4 * 10**4, 10**4, 1), "|i1", bytes(400))]
)
def test_a_placement_that_declares_more_numbers_than_it_holds_is_refused(tmp_path, shape, dtype, content):
    pattern = tmp_path / "pattern.npy"
    pattern.write_bytes(npy(dtype, shape, content))
    with pytest.raises(FormatError, match=r"pattern\.npy: not a \.npy file of numbers: the array has .* numbers"):
        read_plan(pattern)
    with pytest.raises(FormatError, match=r"maps\.npz: not a \.npz file of numbers: .*the array has .* numbers"):
        read_plan(archive_of(tmp_path / "maps.npz", phy2log=npy(dtype, shape[:2], content)))


def test_a_placement_that_unpacks_to_far_more_than_its_bytes_is_refused(tmp_path):
    path = archive_of(tmp_path / "maps.npz", phy2log=npy("|i1", (10**4, 10**4), bytes(10**8)))
    with pytest.raises(FormatError, match=r"maps\.npz: not a \.npz file of numbers"):
        read_plan(path)


def test_a_model_of_more_layers_than_any_is_refused_before_a_row_of_each_is_written(tmp_path):
    plan = json.loads((GOLDEN / "native.json").read_text())
    plan["shape"]["num_hidden_layers"] = 10**18
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(FormatError, match=r"plan\.json: \$: num_hidden_layers = 10+: expected at most 65536"):
        read_plan(tmp_path / "plan.json")


def archive_of(path, **members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy("<f8", (10**6, 10**6)), "the array has 1000000 x 1000000 numbers, the file"),
        (npy("<f8", (3, 8)), r"float64 of shape \(3, 8\), 192 bytes, and 0 follow"),
        (npy("<f8", (2, 4), bytes(128)), r"64 bytes, and 128 follow"),  # two arrays in one file
        (npy("<f8", (-2, -4), bytes(64)), r"shape \(-2, -4\)"),
        (npy("|V0", (4, 4)), r"shape \(4, 4\), 0 bytes"),
    ],
)
def test_the_header_of_an_array_agrees_with_its_bytes(tmp_path, content, message):
    (tmp_path / "a.npy").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("load.npy", content)
    for name in ("a.npy", "a.npz"):
        with pytest.raises(InputError, match=message):
            read(tmp_path / name)


def test_an_archive_unpacks_to_no_more_than_its_size_allows(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("load.npy", npy("|u1", (1 << 12, 1 << 13), bytes(1 << 25)))
    with pytest.raises(InputError, match=r"4096 x 8192 numbers, the file \d{5} bytes: expected at most 16777216"):
        read(tmp_path / "a.npz")
    (tmp_path / "a.npz").rename(tmp_path / "a.pt")
    with pytest.raises(InputError):
        read(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("name", "text", "options", "message"),
    [
        ("a.csv", "layer,expert,count\n0,0,1\n0,1,1\n", {"num_experts": 10**9}, "num_experts .* as given has"),
        ("a.csv", "window,layer,0,1\n0,0,1,2\n900000000,0,1,2\n", {}, "window = 900000000: windows are numbered"),
        (
            "a.csv",
            "token,layer,e0\n0,0,1\n",
            {"num_experts": 10**9},
            "num_experts = 1000000000: expected at most 65536",
        ),
        ("a.csv", "layer,0,1\nlayer_99999999,1,2\n", {}, "'layer_99999999': expected a layer"),
        (
            "a.jsonl",
            json.dumps(
                {"record_type": "eplb_load_stats", "version": 1, "step": 0, "expert_load": [[1]], "p2l_map": [[10**8]]}
            ),
            {},
            "p2l_map has the id 100000000 and 1 slots a layer",
        ),
        ("a.jsonl", '{"layer": "%s", "experts": [1]}' % ("9" * 5000), {}, "layer = '99+: expected an integer"),
        (
            "a.jsonl",
            '{"layer": 999999, "experts": [1]}',
            {"num_experts": 8},
            "layer 999999: expected an id below 65536",
        ),
        (
            "a.jsonl",
            '{"num_experts": 99999999, "top_k": 1}\n{"layer": 0, "experts": [1]}',
            {},
            "expected at most 65536",
        ),
        ("a.json", "[" * 100000, {}, "not JSON|too deep"),
        ("a.json", '{"routed_experts": ' + "[" * 900 + "1" + "]" * 900 + "}", {}, "ragged|too deep|expected"),
        ("a.json", '{"ranked": 1, "counts": 1, "x": ' + "[" * 900 + "]" * 900 + "}", {}, "."),
    ],
)
def test_ids_sizes_and_depths_are_limited(tmp_path, name, text, options, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        read(tmp_path / name, ReadOptions(**options))


def test_every_depth_of_nesting_is_read_or_refused(tmp_path):
    for depth in range(860, 1010, 10):
        (tmp_path / "a.json").write_text('{"x": ' * depth + '{"routed_experts": [[[1]]]}' + "}" * depth)
        with contextlib.suppress(InputError):
            read(tmp_path / "a.json", ReadOptions(num_experts=8))


def test_the_limit_grows_with_the_file():
    check_size((1 << 12, 1 << 12), 0, "x")
    check_size((1 << 20, 64), 1 << 20, "x")
    check_size((1 << 34,), 1 << 34, "x")
    for shape, num_bytes in (((1 << 12, (1 << 12) + 1), 0), ((1 << 20, 65), 1 << 20), (((1 << 30) + 1,), 1 << 29)):
        with pytest.raises(InputError, match=r"x has .* numbers, the file"):
            check_size(shape, num_bytes, "x")


def test_compressed_text_is_limited_as_it_is_read(tmp_path):
    import gzip

    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"0,0,0,0,0,0,0,0\n" * (1 << 22)))
    with pytest.raises(InputError, match=r"the table has .* x 8 numbers, the file"):
        read_load(tmp_path / "a.csv.gz", num_experts=8)


@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:torch.quantize", "ignore:TypedStorage")
@pytest.mark.parametrize("kind", ["sparse", "csr", "meta", "complex", "quantized", "expanded"])
def test_tensors_that_are_no_plain_numbers_are_refused(tmp_path, kind):
    torch = pytest.importorskip("torch")
    ones = torch.ones(4, 16)
    make = {
        "sparse": ones.to_sparse,
        "csr": ones.to_sparse_csr,
        "meta": lambda: ones.to("meta"),
        "complex": lambda: ones.to(torch.complex64),
        "quantized": lambda: torch.quantize_per_tensor(ones, 0.1, 0, torch.qint8),
        "expanded": lambda: torch.ones(1).expand(4, 16),
    }
    for name, of in (("a.pt", lambda tensor: tensor), ("b.pt", lambda tensor: {"logical_count": tensor})):
        torch.save(of(make[kind]()), tmp_path / name)
        with pytest.raises(InputError):
            read(tmp_path / name)


def test_a_long_text_of_many_words_is_read(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"logical_count": torch.ones(4, 16), "prompt": "a word " * 10_000}, tmp_path / "a.pt")
    assert read(tmp_path / "a.pt").load().tokens.shape == (1, 4, 16)


def test_records_that_share_a_tensor_are_limited(tmp_path):
    torch = pytest.importorskip("torch")
    record = {"forward_pass_id": 1, "rank": 0, "global_physical_count": torch.ones(1 << 10, 1 << 10)}
    document = {"records": [dict(record) for _ in range(1 << 9)], "last_physical_to_logical_map": torch.ones(1, 1)}
    torch.save(document, tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"the document has \d+ numbers, the file"):
        read(tmp_path / "a.pt")
