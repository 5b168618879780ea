"""Finds the experts of a checkpoint by tensor name and reads single tensors.

Names are those of Hugging Face files: Mixtral, Qwen-MoE (one tensor per matrix, or all experts of a layer in one 3-D
tensor, as `transformers` 5 stores them) and DeepSeek, whose FP8 matrices have a `weight_scale_inv` tensor each.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, final

from torch import Tensor

from eplb.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    from types import ModuleType

SCALE_SUFFIX = "_scale_inv"


class CheckpointError(InputError):
    """A checkpoint without the expected experts: a tensor is missing, left over, or has a wrong shape."""


@final
@dataclass(frozen=True)
class CheckpointLayout:
    """Tensor names of the experts' matrices; `{layer}` and `{expert}` stand for numbers.

    With `{expert}` in the names, each expert has a gate [I, H], an up [I, H] and a down [H, I] matrix. Without it,
    `gate` names the [E, 2 I, H] tensor of all gates and ups of a layer, `up` is empty, and `down` names [E, H, I].
    """

    name: str
    gate: str
    up: str
    down: str

    @property
    def is_fused(self) -> bool:
        """Whether one tensor holds all experts of a layer."""
        return not self.up

    @property
    def prefix(self) -> str:
        """Common prefix of the names of a layer's experts; contains `{layer}`."""
        return self.gate.split("experts.")[0] + "experts."


def _per_expert(name: str, block: str, gate: str, up: str, down: str) -> CheckpointLayout:
    stem = f"model.layers.{{layer}}.{block}.experts.{{expert}}"
    return CheckpointLayout(name, *(f"{stem}.{matrix}.weight" for matrix in (gate, up, down)))


_FUSED = "model.layers.{layer}.mlp.experts"
CHECKPOINT_LAYOUTS: Mapping[str, CheckpointLayout] = {
    layout.name: layout
    for layout in (
        _per_expert("mixtral", "block_sparse_moe", "w1", "w3", "w2"),
        _per_expert("qwen_moe", "mlp", "gate_proj", "up_proj", "down_proj"),
        _per_expert("deepseek", "mlp", "gate_proj", "up_proj", "down_proj"),
        CheckpointLayout("qwen_moe_fused", f"{_FUSED}.gate_up_proj", "", f"{_FUSED}.down_proj"),
    )
}


class TensorSource(Protocol):
    """Tensors by name, read one at a time."""

    @property
    def place(self) -> str:
        """Name of the source in error messages."""
        ...

    def names(self) -> Collection[str]:
        """Names of all tensors."""
        ...

    def read(self, name: str) -> Tensor:
        """A whole tensor."""
        ...

    def read_entry(self, name: str, index: int) -> Tensor:
        """Entry `index` of a tensor's first dimension, without reading the others."""
        ...

    def length(self, name: str) -> int:
        """The first dimension of a tensor, without reading it."""
        ...


@final
class StateDict:
    """Tensors of a state dict in memory."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    @property
    def place(self) -> str:
        """See `TensorSource`."""
        return "state dict"

    def names(self) -> Collection[str]:
        """See `TensorSource`."""
        return self._tensors.keys()

    def read(self, name: str) -> Tensor:
        """See `TensorSource`."""
        return self._tensors[name]

    def read_entry(self, name: str, index: int) -> Tensor:
        """See `TensorSource`."""
        return self._tensors[name][index]

    def length(self, name: str) -> int:
        """See `TensorSource`."""
        return int(self._tensors[name].shape[0])


@final
class SafetensorsCheckpoint:
    """Tensors of one safetensors file or of a folder of files; a file is opened only to read a tensor.

    A folder is read through its `model.safetensors.index.json`, or file by file if it has no index.

    Raises
    ------
    CheckpointError
        For a path without safetensors files, an invalid index, an index that names missing files, or a tensor in two
        files of a folder without an index. When a tensor is read: if its file is broken or lacks it.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._safetensors = _safetensors()
        self._file_of_name = self._index()

    @property
    def place(self) -> str:
        """See `TensorSource`."""
        return str(self._path)

    def names(self) -> Collection[str]:
        """See `TensorSource`."""
        return self._file_of_name.keys()

    def read(self, name: str) -> Tensor:
        """See `TensorSource`."""
        with self._file_of(name) as path, self._safetensors.safe_open(path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor

    def read_entry(self, name: str, index: int) -> Tensor:
        """See `TensorSource`."""
        with self._file_of(name) as path, self._safetensors.safe_open(path, framework="pt") as file:
            entry: Tensor = file.get_slice(name)[index]
        return entry

    def length(self, name: str) -> int:
        """See `TensorSource`."""
        with self._file_of(name) as path, self._safetensors.safe_open(path, framework="pt") as file:
            return int(file.get_slice(name).get_shape()[0])

    @contextmanager
    def _file_of(self, name: str) -> Iterator[Path]:
        """The file of a tensor; what goes wrong while it is read is a `CheckpointError`."""
        path = self._file_of_name[name]
        try:
            yield path
        except (OSError, self._safetensors.SafetensorError) as error:
            raise CheckpointError(f"{path}: tensor {name} cannot be read: {error}") from error

    def _index(self) -> dict[str, Path]:
        if self._path.is_file():
            return self._names_in(self._path)
        index = self._path / "model.safetensors.index.json"
        if index.is_file():
            return _weight_map(index)
        files = sorted(self._path.glob("*.safetensors"))
        if not files:
            raise CheckpointError(f"{self._path}: expected a safetensors file or a folder of them")
        file_of_name: dict[str, Path] = {}
        for path in files:
            for name in self._names_in(path):
                if name in file_of_name:
                    raise CheckpointError(
                        f"{self._path}: {name} is in {file_of_name[name].name} and in {path.name}: "
                        "expected it once, or an index"
                    )
                file_of_name[name] = path
        return file_of_name

    def _names_in(self, path: Path) -> dict[str, Path]:
        try:
            with self._safetensors.safe_open(path, framework="pt") as file:
                return dict.fromkeys(file.keys(), path)
        except (OSError, self._safetensors.SafetensorError) as error:
            raise CheckpointError(f"{path}: not a safetensors file: {error}") from error


def detect_layout(source: TensorSource) -> CheckpointLayout:
    """The layout whose names a checkpoint uses; DeepSeek's if there are FP8 scales.

    Raises
    ------
    CheckpointError
        If no known layout matches.
    """
    names = source.names()
    if any(".block_sparse_moe.experts." in name for name in names):
        return CHECKPOINT_LAYOUTS["mixtral"]
    if any(name.endswith(".mlp.experts.gate_up_proj") for name in names):
        return CHECKPOINT_LAYOUTS["qwen_moe_fused"]
    experts = [name for name in names if ".mlp.experts." in name]
    if not experts:
        raise CheckpointError(f"{source.place}: no experts found, expected names of {', '.join(CHECKPOINT_LAYOUTS)}")
    return CHECKPOINT_LAYOUTS["deepseek" if any(n.endswith(SCALE_SUFFIX) for n in experts) else "qwen_moe"]


def _weight_map(index: Path) -> dict[str, Path]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = {str(name): index.parent / str(file) for name, file in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise CheckpointError(f"{index}: expected an object weight_map of tensor names and files: {error}") from error
    for file in sorted(set(files.values())):
        if not file.is_file():
            raise CheckpointError(f"{index}: the file {file.name} named in weight_map does not exist")
    return files


def _safetensors() -> "ModuleType":
    try:
        import safetensors
    except ModuleNotFoundError as error:
        raise MissingExtraError("reading safetensors", "runtime") from error
    return safetensors
