"""Decodes the pickle of a .pt file into tensors, numbers, texts, lists and dictionaries; nothing is called or imported.

torch.save writes protocol 2 and a few of its opcodes. They are interpreted here: a name is a text that selects one of
the cases below, so that there is nothing that a file could run. Any other opcode or name is refused.
"""

import pickletools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray

from eplb_traces.errors import InputError

BFLOAT16: Final = "bfloat16"
STORAGE_TYPES: Final = {
    "torch.DoubleStorage": "f8",
    "torch.FloatStorage": "f4",
    "torch.HalfStorage": "f2",
    "torch.BFloat16Storage": BFLOAT16,
    "torch.LongStorage": "i8",
    "torch.IntStorage": "i4",
    "torch.ShortStorage": "i2",
    "torch.CharStorage": "i1",
    "torch.ByteStorage": "u1",
    "torch.BoolStorage": "?",
}
UNTYPED: Final = "torch.storage.UntypedStorage"
TYPES_WITHOUT_STORAGE: Final = {"torch.uint16": "u2", "torch.uint32": "u4", "torch.uint64": "u8"}


class _Call(StrEnum):
    """What is called in a pickle of plain tensors."""

    ORDERED_DICT = "collections.OrderedDict"
    SIZE = "torch.Size"
    PARAMETER = "torch._utils._rebuild_parameter"
    TENSOR = "torch._utils._rebuild_tensor_v2"
    TENSOR_WITHOUT_STORAGE_TYPE = "torch._utils._rebuild_tensor_v3"


_NAMES: Final = frozenset({*STORAGE_TYPES, UNTYPED, *TYPES_WITHOUT_STORAGE, *_Call})
_CONSTANTS: Final = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_VALUES: Final = frozenset({"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"})
_SHORT_TUPLES: Final = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_MOST_SHOWN = 80


@final
@dataclass(frozen=True)
class Name:
    """A dotted name in the pickle. It is compared, never imported."""

    dotted: str


@final
@dataclass(frozen=True)
class Storage:
    """The numbers that tensors are views of: `dtype` is a numpy code, `BFLOAT16`, or empty where the tensor has it."""

    key: str
    dtype: str
    num_elements: int


@final
@dataclass(frozen=True)
class TensorView:
    """A tensor as the file describes it: `shape` and `strides` in elements of the storage, from `offset` on."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


BuildArray = Callable[[TensorView], NDArray[Any]]


def decoded(content: bytes, build_array: BuildArray) -> object:
    """The value of a pickle of torch.save.

    Parameters
    ----------
    content
        The member data.pkl.
    build_array
        Makes the array of a tensor.

    Raises
    ------
    InputError
        If there is an opcode, a name or a key that torch.save does not write for plain tensors.
    ValueError, IndexError, KeyError, TypeError
        If the pickle is damaged.
    """
    machine = _Machine(build_array)
    for opcode, argument, position in pickletools.genops(content):
        machine.step(opcode.name, argument, position)
    (value,) = machine.stack
    return value


@final
class _Machine:
    """The stack, the marks in it, and the numbered values of a pickle."""

    def __init__(self, build_array: BuildArray) -> None:
        self.stack: list[object] = []
        self.marks: list[int] = []
        self.memo: dict[int, object] = {}
        self.build_array = build_array

    def step(self, opcode: str, argument: Any, position: int | None) -> None:  # noqa: ANN401  # as pickletools has it
        """Interpret one opcode."""
        if opcode in _VALUES:
            self.stack.append(argument)
        elif opcode in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.stack[-1]
        elif opcode in ("BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif opcode == "MARK":
            self.marks.append(len(self.stack))
        elif opcode in _CONSTANTS:
            self.stack.append(_CONSTANTS[opcode])
        elif opcode == "GLOBAL":
            self.stack.append(_allowed_name(argument))
        elif opcode not in ("PROTO", "STOP"):
            self._step_of_containers(opcode, position)

    def _step_of_containers(self, opcode: str, position: int | None) -> None:
        if opcode in ("EMPTY_LIST", "EMPTY_DICT"):
            self.stack.append([] if opcode == "EMPTY_LIST" else {})
        elif opcode in ("APPEND", "APPENDS"):
            values = self._popped(1) if opcode == "APPEND" else self._marked()
            self._top(list).extend(values)
        elif opcode in ("SETITEM", "SETITEMS"):
            values = self._popped(2) if opcode == "SETITEM" else self._marked()
            self._top(dict).update(zip(map(_key, values[::2]), values[1::2], strict=True))
        elif opcode == "TUPLE" or opcode in _SHORT_TUPLES:
            values = self._marked() if opcode == "TUPLE" else self._popped(_SHORT_TUPLES[opcode])
            self.stack.append(tuple(values))
        elif opcode == "BINPERSID":
            self.stack.append(_storage(self.stack.pop()))
        elif opcode == "REDUCE":
            name, arguments = self._popped(2)
            self.stack.append(self._rebuilt(name, arguments))
        else:
            raise InputError(f"the opcode {opcode} at byte {position} of its pickle: expected those of plain tensors")

    def _popped(self, count: int) -> list[object]:
        if len(self.stack) < count:
            raise IndexError("a value is missing in its pickle")
        values = self.stack[-count:]
        del self.stack[-count:]
        return values

    def _marked(self) -> list[object]:
        first = self.marks.pop()
        values = self.stack[first:]
        del self.stack[first:]
        return values

    def _top(self, kind: type[list[Any]] | type[dict[Any, Any]]) -> Any:  # noqa: ANN401  # of the kind
        if not isinstance(self.stack[-1], kind):
            raise TypeError(f"a {type(self.stack[-1]).__name__} in its pickle: expected a {kind.__name__}")
        return self.stack[-1]

    def _rebuilt(self, name: object, arguments: object) -> object:
        """The value of a call; the flag and the hooks of a gradient are dropped."""
        match name, arguments:
            case Name(_Call.ORDERED_DICT), ():
                return {}
            case Name(_Call.SIZE), (tuple() as size,):
                return size
            case Name(_Call.PARAMETER), (np.ndarray() as array, bool(), dict()):
                return array
            case Name(_Call.TENSOR), (Storage() as storage, offset, shape, strides, _, _):
                return self.build_array(_view(storage, storage.dtype, (offset, shape, strides)))
            case (
                Name(_Call.TENSOR_WITHOUT_STORAGE_TYPE),
                (Storage() as storage, offset, shape, strides, _, _, Name() as dtype),
            ):
                return self.build_array(_view(storage, TYPES_WITHOUT_STORAGE[dtype.dotted], (offset, shape, strides)))
        dotted = name.dotted if isinstance(name, Name) else type(name).__name__
        raise InputError(f"a call of {dotted} in its pickle with other arguments than torch.save writes")


def _allowed_name(argument: str) -> Name:
    dotted = argument.replace(" ", ".", 1)
    if dotted in _NAMES:
        return Name(dotted)
    shown = dotted if len(dotted) <= _MOST_SHOWN else f"{dotted[:_MOST_SHOWN]}..."
    if dotted.startswith("torch."):
        raise InputError(f"holds {shown}: expected dense tensors of integers, floats, bfloat16 or bools")
    raise InputError(
        f"not a file of plain tensors: it needs unpickling, which can run any code, and is refused ({shown})"
    )


def _key(value: object) -> str | int:
    if not isinstance(value, str | int):
        raise InputError(f"a key of a dictionary is a {type(value).__name__}: expected a text or an integer")
    return value


def _storage(reference: object) -> Storage:
    match reference:
        case "storage", Name(dotted), str() as key, str(), int() as num_elements:
            return Storage(key, "" if dotted == UNTYPED else STORAGE_TYPES[dotted], num_elements)
    raise TypeError("a reference in its pickle is not to a storage")


def _view(storage: Storage, dtype: str, place: tuple[object, object, object]) -> TensorView:
    offset, shape, strides = place
    if not isinstance(offset, int) or not dtype or storage.dtype not in ("", dtype):
        raise TypeError(f"a tensor of storage {storage.key} has no offset or type")
    return TensorView(storage, dtype, offset, _sizes(shape), _sizes(strides))


def _sizes(values: object) -> tuple[int, ...]:
    if not isinstance(values, Sequence) or not all(type(value) is int for value in values):
        raise TypeError("a shape or stride in its pickle is not of integers")
    return tuple(values)
