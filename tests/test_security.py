"""What SECURITY.md promises about files: nothing in them is run, unpacked to disk or taken for a path."""

import ast
import contextlib
import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from eplb.errors import InputError
from eplb.formats import read_plan
from eplb_traces.readers import read

ROOT = Path(__file__).resolve().parents[1]
RUNNING = {"eval", "exec", "__import__", "os.system", "os.popen", "yaml.unsafe_load", "marshal.loads"}
UNPACKING = {"extract", "extractall", "unpack_archive"}


def calls(source):
    """Dotted names of what is called, and the last part of each; `shell=True` counts as a call."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            found |= {name, f".{name.rsplit('.', 1)[-1]}"}
            found |= {"shell" for word in node.keywords if word.arg == "shell"}
    return found


def test_no_text_is_run_and_no_archive_is_unpacked():
    for package in ("eplb", "traces/eplb_traces", "cli/eplb_cli"):
        for path in sorted((ROOT / package).rglob("*.py")):
            found = calls(path.read_text())
            assert not found & (RUNNING | {"shell"}), path
            assert not found & {f".{name}" for name in UNPACKING}, path


def test_such_calls_are_found():
    assert "eval" in calls("x = [eval(t) for t in y]")
    assert "shell" in calls("subprocess.run(text, shell=True)")
    assert ".extractall" in calls("with zipfile.ZipFile(p) as archive:\n    archive.extractall(folder)")


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize(
    "name", ["../escaped.npy", "/tmp/eplb-escaped.npy", "a/../../escaped.npy", "tokens.npy/../../x.npy"]
)
def test_names_in_an_archive_are_no_paths(tmp_path, name):
    inside = tmp_path / "inside"
    inside.mkdir()
    for suffix in (".npz", ".pt"):
        with zipfile.ZipFile(inside / f"a{suffix}", "w") as archive:
            archive.writestr("tokens.npy", npy(np.ones((2, 8)) * 3))
            archive.writestr(name, npy(np.ones((2, 8)) * 5))
        for reader in (read, read_plan):
            with contextlib.suppress(InputError):
                reader(inside / f"a{suffix}")
    assert sorted(os.listdir(tmp_path)) == ["inside"]
    assert sorted(os.listdir(inside)) == ["a.npz", "a.pt"]
    assert not Path("/tmp/eplb-escaped.npy").exists()


class _Exploit:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pt", ".pkl", ".json"])
def test_nothing_is_unpickled(tmp_path, suffix):
    import pickle

    proof, path = tmp_path / "unpickled", tmp_path / f"a{suffix}"
    objects = np.array([_Exploit(proof)], dtype=object)
    if suffix == ".npy":
        np.save(path, objects, allow_pickle=True)
    elif suffix == ".npz":
        np.savez(path, tokens=objects)
    elif suffix == ".pt":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a/data.pkl", pickle.dumps(_Exploit(proof), protocol=2))
            archive.writestr("a/version", "3")
    else:
        path.write_bytes(pickle.dumps(_Exploit(proof)))
    for reader in (read, read_plan):
        with pytest.raises(InputError):
            reader(path)
    assert not proof.exists()
    pickle.loads(pickle.dumps(_Exploit(proof)))
    assert proof.exists()  # the exploit works
