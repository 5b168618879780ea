"""Opens the paths of object stores and other remote file systems (`s3://`, `gs://`, `hf://`, `memory://`) by fsspec.

The one place where a URL becomes a file: readers get a copy on this machine, writers put the whole object at once.
"""

import atexit
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from eplb_traces.errors import InputError, MissingExtraError

_URL = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]+):/+(?P<rest>.+)", re.DOTALL)


def url_of(path: str | Path) -> str | None:
    """The URL that a path is, also where `Path` has merged its slashes (`s3:/bucket/key`); None for a path here."""
    match = _URL.fullmatch(str(path))
    if match is None:
        return None
    root = "/" if match["scheme"] == "file" else ""
    return f"{match['scheme']}://{root}{match['rest']}"


def local_copy(path: str | Path) -> Path:
    """The path itself, or of a URL a copy on this machine, which is kept until the process ends.

    An object that has not changed is copied once. A URL of a folder gives a folder with its files.

    Raises
    ------
    InputError
        If there is no such object, or it cannot be read.
    MissingExtraError
        If fsspec is not installed.
    """
    url = url_of(path)
    return Path(path) if url is None else _kept_copy(url, stamp(path))


@contextmanager
def borrowed(path: str | Path) -> Iterator[Path]:
    """The path itself, or of a URL a copy on this machine, which is deleted after the block; errors as `local_copy`."""
    url = url_of(path)
    if url is None:
        yield Path(path)
        return
    with tempfile.TemporaryDirectory(prefix="eplb-") as folder:
        yield _download(url, Path(folder))


def exists(path: str | Path) -> bool:
    """Whether there is a file, a folder or an object; errors as `local_copy`."""
    url = url_of(path)
    if url is None:
        return Path(path).exists()
    with _naming(url):
        system, inside = _system(url)
        return bool(system.exists(inside))


def stamp(path: str | Path) -> str:
    """A text that changes when the content of a file or object changes: size and time, or the store's own tag."""
    url = url_of(path)
    if url is None:
        state = Path(path).stat()
        return f"{state.st_size} {state.st_mtime_ns}"
    with _naming(url):
        system, inside = _system(url)
        system.invalidate_cache()
        return str(system.ukey(inside))


def matching(pattern: str) -> list[str]:
    """The URLs that a URL with wildcards names, in order; errors as `local_copy`."""
    with _naming(pattern):
        system, inside = _system(pattern)
        system.invalidate_cache()
        found = [str(system.unstrip_protocol(name)) for name in system.glob(inside)]
    return sorted(url_of(name) or name for name in found)


def put(url: str, content: bytes | Callable[[Path], None]) -> None:
    """Write an object as one put: readers see the old one or the whole new one.

    Parameters
    ----------
    url
        Of the object.
    content
        Its bytes, or a function that writes a file to a given path (with the suffix of `url`).

    Raises
    ------
    InputError
        If it cannot be written. The old object is still there then.
    MissingExtraError
        If fsspec is not installed.
    """
    with _naming(url, "cannot write "):
        system, inside = _system(url)
        if isinstance(content, bytes):
            system.pipe_file(inside, content)
            return
        with tempfile.TemporaryDirectory(prefix="eplb-") as folder:
            beside = Path(folder) / f"whole{Path(url).suffix}"
            content(beside)
            system.put_file(str(beside), inside)


@cache
def _kept_copy(url: str, _stamp: str) -> Path:
    folder = tempfile.mkdtemp(prefix="eplb-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return _download(url, Path(folder))


def _download(url: str, folder: Path) -> Path:
    """Copy an object, or all objects under a folder, to `folder`; the name stays, as it tells the format."""
    target = folder / (url.rstrip("/").rpartition("/")[2] or "object")
    with _naming(url):
        system, inside = _system(url)
        if system.isdir(inside):
            target.mkdir()
            for found in system.ls(inside, detail=False):
                if system.isfile(found):
                    system.get_file(found, str(target / found.rpartition("/")[2]))
        else:
            system.get_file(inside, str(target))
    return target


def _system(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it."""
    try:
        import fsspec
    except ImportError as error:
        raise MissingExtraError(f"a path such as {url}", "scale") from error
    system, inside = fsspec.core.url_to_fs(url)
    return system, str(inside)


@contextmanager
def _naming(url: str, doing: str = "") -> Iterator[None]:
    """Turn what a file system raises, each its own errors, into an InputError that names the URL."""
    try:
        yield
    except (InputError, MissingExtraError):
        raise
    except FileNotFoundError as error:
        raise InputError(f"{doing}{url}: no such object, bucket or folder") from error
    except Exception as error:
        raise InputError(f"{doing}{url}: {type(error).__name__}: {error}") from error
