import os

import pytest

from eplb_traces import InputError
from eplb_traces.files.atomic_file import atomic_write


def test_bytes_and_functions_replace_the_old_file(tmp_path):
    path = tmp_path / "plan.json"
    atomic_write(path, b"old")
    atomic_write(path, lambda beside: beside.write_text("new") and None)
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["plan.json"]


def test_the_function_writes_to_the_same_folder_with_the_same_suffix(tmp_path):
    seen = []

    def write(beside):
        seen.append(beside)
        beside.write_bytes(b"x")

    atomic_write(tmp_path / "load.npz", write)
    assert seen[0].parent == tmp_path
    assert seen[0].suffix == ".npz"
    assert seen[0].name != "load.npz"


def test_a_failure_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "plan.json"
    path.write_text("old")

    def fail(beside):
        beside.write_text("half")
        raise KeyError("power cut")

    with pytest.raises(KeyError, match="power cut"):
        atomic_write(path, fail)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["plan.json"]


def test_a_link_is_kept_and_its_target_is_replaced(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    link.symlink_to(target)
    atomic_write(link, b"new")
    assert link.is_symlink()
    assert target.read_text() == "new"


def test_a_new_file_gets_the_default_permissions(tmp_path):
    (tmp_path / "plain").write_text("")
    atomic_write(tmp_path / "ours", b"")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_missing_folder_and_a_folder_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"cannot write .*missing/file: No such file"):
        atomic_write(tmp_path / "missing" / "file", b"")
    with pytest.raises(InputError, match="not a regular file"):
        atomic_write(tmp_path, b"")
