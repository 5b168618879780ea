"""Damaged files of every dialect: cut, flipped, spliced, renamed, nested; whatever comes out, it is a named error."""

import os
import re
import shutil
import signal
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from eplb_traces import EplbError
from eplb_traces.readers import READERS, ReadOptions, read
from tests.traces.variations import arrays, engines, records, tables

NUM_MUTATIONS = int(os.environ.get("EPLB_NUM_MUTATIONS", "800"))
"""10,000 is the whole of it; the suite runs some of them."""
NUM_PARTS = 4
MOST_SECONDS = 20
MUTANTS_OF_A_FILE = 8
MAKERS = [arrays.array_variation, records.record_variation, tables.table_variation]
BYTES = [
    b"\0",
    b"\xff",
    b",",
    b"\n",
    b'"',
    b"-",
    b"nan",
    b"1e999",
    b";",
    b"\t",
    b"#",
    b"\r",
    b" ",
    b"9" * 30,
    b"\xc2\xb2",
    b"[",
    b"{",
    b"]",
    b"}",
    b":",
    b"null",
    b"-1",
    b"1e308",
    b"\\ud800",
    b"PK\x05\x06",
    b"PK\x01\x02",
]
OPTIONS = [
    {},
    {"num_experts": 16},
    {"num_experts": 16, "top_k": 2, "moe_layer_ids": (1, 2, 3)},
    {"num_experts": 10**9},
    {"top_k": 2, "num_hidden_layers": 4, "num_experts": 16},
    {"ignore_ids": (255,), "num_experts": 16},
    {"ignore_columns": (1,)},
    {"recorded_under": np.arange(60).reshape(3, 20) % 16},
    {"window": 2},
]


def cut(rng, content):
    return content[: rng.integers(len(content) + 1)]


def flipped(rng, content):
    changed = bytearray(content)
    for at in rng.integers(0, len(content), rng.integers(1, 9)):
        changed[at] ^= 1 << rng.integers(8)
    return bytes(changed)


def spliced(rng, content):
    at = int(rng.integers(len(content) + 1))
    length = int(rng.choice([0, 0, 1, 2, 8]))
    return content[:at] + BYTES[rng.integers(len(BYTES))] + content[at + length :]


def copied(rng, content):
    """A part of the file once more, elsewhere."""
    first, second, at = np.sort(rng.integers(0, len(content) + 1, 3))[[0, 2, 1]]
    return content[:at] + content[first:second] + content[at:]


def other_header(rng, content):
    """Another number, or another letter, in the first or last bytes: shapes, types, names, directories."""
    head = 400 if rng.random() < 0.7 else -300
    part = content[:head] if head > 0 else content[head:]
    found = list(re.finditer(rb"\d+|[<>|][a-z]\d|[a-z_]{3,}", part))
    if not found:
        return flipped(rng, content)
    match = found[rng.integers(len(found))]
    other = [b"0", b"1", b"99999", b"4294967296", b"-1", b"<f8", b"|O", b"|S3", b"<U2", b"step", b"total"]
    changed = part[: match.start()] + other[rng.integers(len(other))] + part[match.end() :]
    return changed + content[head:] if head > 0 else content[:head] + changed


def nested(rng, content):
    depth = int(rng.choice([40, 900, 100000]))
    at = int(rng.integers(len(content) + 1))
    return content[:at] + (b"[" if rng.random() < 0.6 else b'{"a":') * depth + content[at:]


def damaged_directory(rng, content):
    """Other bytes in the directory at the end of a zip or Parquet file."""
    first = max(content.rfind(b"PK\x01\x02"), len(content) - 200, 0)
    return content[:first] + flipped(rng, content[first:] or b"\0")


MUTATIONS = [cut, flipped, flipped, spliced, spliced, copied, other_header, other_header, nested, damaged_directory]


def base(rng, folder):
    """A file, or a folder, of a random dialect."""
    if rng.random() < 0.4:
        return engines.written(rng, folder)
    variation = MAKERS[rng.integers(len(MAKERS))](rng)
    variation.write(folder / variation.name)
    return folder / variation.name


class TooSlowError(BaseException):
    """No `Exception`, so that no reader takes it for damage."""


def stop(*_):
    raise TooSlowError(f"mutants of a file take more than {MOST_SECONDS} s")


def peak_bytes():
    """The largest resident size of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


def try_mutants(seed, folder):
    """Read damaged copies of one file; anything but a reading or a named error is raised with seed and name."""
    rng = np.random.default_rng(seed)
    path = base(rng, folder)
    file = path if path.is_file() else sorted(path.iterdir())[rng.integers(len(list(path.iterdir())))]
    content = file.read_bytes() or b"\0"
    for number in range(MUTANTS_OF_A_FILE):
        mutation = MUTATIONS[rng.integers(len(MUTATIONS))]
        file.write_bytes(mutation(rng, content))
        options = OPTIONS[rng.integers(len(OPTIONS))]
        told = str(rng.choice(list(READERS))) if rng.random() < 0.1 else None
        try:
            with suppress(EplbError):
                read(path, ReadOptions(**options), format=told).load()
        except (Exception, TooSlowError) as error:
            raise AssertionError(
                f"seed {seed}, mutant {number}, {mutation.__name__} of {file.name}, {options}"
            ) from error


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("part", range(NUM_PARTS))
def test_damaged_files_are_read_or_refused_by_name(tmp_path, part):
    for needed in ("torch", "safetensors", "pyarrow"):
        pytest.importorskip(needed)
    num_files = -(-NUM_MUTATIONS // (NUM_PARTS * MUTANTS_OF_A_FILE))
    before = signal.signal(signal.SIGALRM, stop)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    at_first = peak_bytes()
    try:
        for seed in range(part * num_files, (part + 1) * num_files):
            folder = tmp_path / str(seed)
            folder.mkdir()
            signal.alarm(MOST_SECONDS)
            try_mutants(seed, folder)
            signal.alarm(0)
            shutil.rmtree(folder)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert peak_bytes() - at_first < 1 << 30


def test_every_mutation_changes_a_file():
    content = b'{"load": [[1, 2], [3, 4]]}' * 20
    for mutation in MUTATIONS:
        changed = {mutation(np.random.default_rng(seed), content) for seed in range(8)}
        assert len(changed - {content}) > 4
