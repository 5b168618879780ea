import os

import pytest

from eplb_traces import InputError
from eplb_traces.errors import IncompleteOutputError
from eplb_traces.files.atomic_file import atomic_write, atomic_write_all


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


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o666])
def test_permissions_of_the_old_file_are_kept(tmp_path, mode):
    path = tmp_path / "plan.json"
    path.write_text("old")
    path.chmod(mode)
    seen = []

    def write(beside):
        seen.append(beside.stat().st_mode & 0o777)
        beside.write_text("new")

    atomic_write(path, write)
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("new", mode)
    assert seen == [0o600]  # nobody else reads it before it is there


def test_files_that_belong_together_are_replaced_only_when_all_are_complete(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    atomic_write_all({one: b"old", two: b"old"})

    def fail(beside):
        beside.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match=r"cannot write .*two: No space left"):
        atomic_write_all({one: b"new", two: fail})
    assert (one.read_bytes(), two.read_bytes()) == (b"old", b"old")
    assert sorted(os.listdir(tmp_path)) == ["one", "two"]


def test_a_rename_that_fails_after_another_one_names_what_was_written(tmp_path, monkeypatch):
    one, two = tmp_path / "one", tmp_path / "two"
    real = os.replace

    def replace(source, target):
        if target == two:
            raise PermissionError(1, "Operation not permitted")
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(
        IncompleteOutputError, match=r"cannot write .*two: Operation not permitted; written before: .*one"
    ):
        atomic_write_all({one: b"new", two: b"new"})
    assert os.listdir(tmp_path) == ["one"]


def test_a_folder_that_cannot_be_flushed_is_a_warning(tmp_path, monkeypatch, caplog):
    real = os.fsync

    def fsync(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(22, "Invalid argument")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    atomic_write(tmp_path / "plan.json", b"new")
    assert (tmp_path / "plan.json").read_bytes() == b"new"
    assert "cannot be flushed to disk: Invalid argument" in caplog.text


def test_what_an_interrupted_write_left_is_removed_and_what_is_being_written_stays(tmp_path):
    path, seen = tmp_path / "plan.json", []
    (tmp_path / f".plan.{'0' * 16}.json").write_text("left by a process that was killed")
    (tmp_path / f".other.{'0' * 16}.json").write_text("of another file")

    def write(beside):
        atomic_write(path, b"inner")  # a second writer while the first one has not ended
        seen.append(beside.exists())
        beside.write_text("outer")

    atomic_write(path, write)
    assert (path.read_text(), seen) == ("outer", [True])
    assert sorted(os.listdir(tmp_path)) == [f".other.{'0' * 16}.json", "plan.json"]
