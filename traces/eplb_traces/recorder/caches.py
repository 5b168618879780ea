"""Finds the key-value cache of a pass by structure, because its name differs: ``past_key_values``, later ``cache``.

A cache is an object with a method ``get_seq_length``, as every transformers `Cache` has. The argument was renamed in
transformers 5.24, and models of other origin use other names. A pass with earlier tokens whose cache cannot be found is
refused: every decode step would look like a new request.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from typing import TYPE_CHECKING, final

from eplb_traces.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

# Preferred where a model has several caches; what has one of these names has to be a cache.
_USUAL_NAMES = ("cache", "past_key_values", "cache_params")
_POSITION_NAMES = ("cache_position", "position_ids")
_MAX_DEPTH = 3


@final
@dataclass(frozen=True, eq=False)
class FoundCache:
    """The key-value cache of a pass, before the pass.

    Parameters
    ----------
    identity
        The cache object; passes with the same object and earlier tokens continue the same requests.
    length
        Tokens in the cache; None: unknown, as in a cache of linear attention only.
    """

    identity: object
    length: int | None


def find_cache(arguments: Mapping[str, object]) -> FoundCache | None:
    """Return the cache among the arguments of a forward pass, by the last name it has; None: there is none.

    Raises
    ------
    InputError
        If several arguments are caches, or one has the name of a cache but no length.
    """
    named = {id(cache): (name, cache) for name, value in arguments.items() for cache in _caches_in(value)}
    found = list(named.values())
    if len(found) > 1:
        found = [(name, cache) for name, cache in found if name in _USUAL_NAMES] or found
    if len(found) > 1:
        names = ", ".join(f"{name} ({type(cache).__name__})" for name, cache in found)
        raise InputError(f"the model was called with {len(found)} key-value caches: {names}: expected one")
    if found:
        return FoundCache(found[0][1], _length(found[0][1]))
    for name, value in arguments.items():
        if _looks_like_cache(name, value):
            raise InputError(
                f"{name} is {type(value).__name__}: expected a cache with get_seq_length, as every transformers Cache "
                "has, else decode steps would be new requests"
            )
    return None


def returned_caches(output: object) -> tuple[object, ...]:
    """Return the caches in the output of a forward pass."""
    return tuple({id(cache): cache for cache in _caches_in(output)}.values())


def check_no_earlier_tokens(arguments: Mapping[str, object], length: int) -> None:
    """Refuse a pass of `length` tokens without a filled cache whose mask or positions include earlier tokens.

    Positions may start at 1, because some models count from there.

    Raises
    ------
    InputError
        Naming the argument that includes earlier tokens.
    """
    mask = _integers(arguments.get("attention_mask"))
    if mask is not None and mask.ndim == 2 and mask.shape[1] > length:
        raise _hidden_cache(f"attention_mask has {mask.shape[1]} tokens and the pass {length}")
    for name in _POSITION_NAMES:
        positions = _integers(arguments.get(name))
        if positions is not None and positions.numel() and (first := int(positions.min())) > 1:
            raise _hidden_cache(f"{name} starts at {first}")


def check_made_in_pass(caches: tuple[object, ...], length: int) -> None:
    """Refuse returned caches with more tokens than the pass, which was called without a cache.

    Raises
    ------
    InputError
        If a cache holds more than `length` tokens.
    """
    for cache in caches:
        if (found := _length(cache) or 0) > length:
            raise _hidden_cache(f"the model returned a cache of {found} tokens after a pass of {length}")


def _hidden_cache(seen: str) -> InputError:
    return InputError(
        f"{seen}: a filled key-value cache is in use, but no argument of the model is a filled cache: expected an "
        f"object with get_seq_length among the arguments ({', '.join(_USUAL_NAMES)} or any other name)"
    )


def _caches_in(value: object, depth: int = 0) -> Iterator[object]:
    """Caches in a value, or in the mappings, sequences and dataclasses that it consists of."""
    if callable(getattr(value, "get_seq_length", None)):
        yield value
    elif depth < _MAX_DEPTH:
        for part in _parts(value):
            yield from _caches_in(part, depth + 1)


def _parts(value: object) -> tuple[object, ...]:
    if isinstance(value, Mapping):
        return tuple(value.values())
    if isinstance(value, list | tuple):
        return tuple(value)
    return tuple(vars(value).values()) if is_dataclass(value) else ()


def _looks_like_cache(name: str, value: object) -> bool:
    """Return whether an argument that is no cache has the name or type of one and is not empty."""
    is_empty = value is None or isinstance(value, bool) or (isinstance(value, list | tuple | Mapping) and not value)
    return not is_empty and (name in _USUAL_NAMES or type(value).__name__.endswith("Cache"))


def _length(cache: object) -> int | None:
    """Tokens in a cache; waits for the device where the cache counts them there, as a static one does."""
    length_of = getattr(cache, "get_seq_length", None)
    try:
        length = length_of() if callable(length_of) else None
    except ValueError:  # a cache of linear attention only
        return None
    return None if length is None else int(length)


def _integers(value: object) -> "Tensor | None":
    import torch

    return value if torch.is_tensor(value) and not value.is_floating_point() else None
