"""Holds the sizes of a Mixture-of-Experts model as its router sees it, and merges what two sources tell of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import final

from eplb_traces.display import fields_html, short_repr
from eplb_traces.errors import InputError
from eplb_traces.files.limits import MOST_LAYERS


@final
@dataclass(frozen=True)
class ModelShape:
    """The sizes of a model, equal in its traces, plans and engines.

    Parameters
    ----------
    num_layers
        Number of MoE layers. Dense layers do not count.
    num_experts
        Logical routed experts of a layer, shared experts left out.
    top_k
        Experts a token selects; None where the source has loads only.
    num_expert_groups
        Routing groups of group-limited gating; 1 without groups. Group g holds the contiguous experts
        ``[g * E / G, (g + 1) * E / G)``.
    top_k_groups
        Groups a token may select from; None without a limit.
    moe_layer_ids
        Absolute index of each MoE layer in the model, ascending; None where unknown.
    num_hidden_layers
        Layers of the model, dense ones included; None where unknown.
    name
        What the model is called; None where unknown. Two shapes are equal whatever their names and bytes are.
    expert_bytes
        Bytes of the weights of one expert of one layer, as they were served; None where unknown.

    Raises
    ------
    InputError
        If a number is out of range or two numbers contradict each other.
    """

    num_layers: int
    num_experts: int
    top_k: int | None = None
    num_expert_groups: int = 1
    top_k_groups: int | None = None
    moe_layer_ids: tuple[int, ...] | None = None
    num_hidden_layers: int | None = None
    name: str | None = field(default=None, compare=False)
    expert_bytes: float | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        for name in ("num_layers", "num_experts", "num_expert_groups"):
            _check_positive(name, getattr(self, name))
        if self.top_k is not None:
            _check_positive("top_k", self.top_k)
            if self.top_k > self.num_experts:
                raise InputError(f"top_k = {self.top_k}: expected at most num_experts = {self.num_experts}")
        if self.num_experts % self.num_expert_groups:
            raise InputError(
                f"num_expert_groups = {self.num_expert_groups}: expected a divisor of num_experts = {self.num_experts}"
            )
        self._check_groups()
        self._check_layer_ids()
        if self.expert_bytes is not None and not 0 < self.expert_bytes < float("inf"):
            raise InputError(f"expert_bytes = {self.expert_bytes}: expected finite and > 0")

    def __repr__(self) -> str:
        return short_repr(self)

    def _repr_html_(self) -> str:
        return fields_html(self)

    def _check_groups(self) -> None:
        if self.top_k_groups is None:
            return
        if not 1 <= self.top_k_groups <= self.num_expert_groups:
            raise InputError(f"top_k_groups = {self.top_k_groups}: expected 1 to {self.num_expert_groups}")
        reachable = self.top_k_groups * (self.num_experts // self.num_expert_groups)
        if self.top_k is not None and self.top_k > reachable:
            raise InputError(f"top_k = {self.top_k}: {self.top_k_groups} groups hold only {reachable} experts")

    def _check_layer_ids(self) -> None:
        for name in ("num_layers", "num_hidden_layers"):
            if (getattr(self, name) or 0) > MOST_LAYERS:
                raise InputError(f"{name} = {getattr(self, name)}: expected at most {MOST_LAYERS}")
        if self.num_hidden_layers is not None and self.num_hidden_layers < self.num_layers:
            raise InputError(
                f"num_hidden_layers = {self.num_hidden_layers}: expected at least num_layers = {self.num_layers}"
            )
        if self.moe_layer_ids is None:
            return
        ids = tuple(int(i) for i in self.moe_layer_ids)
        object.__setattr__(self, "moe_layer_ids", ids)
        if len(ids) != self.num_layers:
            raise InputError(f"moe_layer_ids has {len(ids)} entries: expected num_layers = {self.num_layers}")
        if ids[0] < 0 or any(a >= b for a, b in pairwise(ids)):
            raise InputError(f"moe_layer_ids = {ids}: expected ascending ids >= 0")
        if ids[-1] >= MOST_LAYERS:
            raise InputError(f"moe_layer_ids has {ids[-1]}: expected ids below {MOST_LAYERS}")
        if self.num_hidden_layers is not None and ids[-1] >= self.num_hidden_layers:
            raise InputError(
                f"moe_layer_ids[{len(ids) - 1}] = {ids[-1]}: expected < num_hidden_layers = {self.num_hidden_layers}"
            )

    @property
    def experts_per_group(self) -> int:
        """Logical experts of one routing group."""
        return self.num_experts // self.num_expert_groups


class ShapeConflictError(InputError):
    """Two shapes have different values.

    Parameters
    ----------
    name
        What differs.
    first, second
        The two values, as text.
    """

    def __init__(self, name: str, first: str, second: str) -> None:
        super().__init__(f"{name} = {first}, but {second} was given")
        self.name, self.first, self.second = name, first, second

    def __reduce__(self) -> tuple[type["ShapeConflictError"], tuple[str, str, str]]:
        return ShapeConflictError, (self.name, self.first, self.second)


def merge_shapes(shape: ModelShape, other: ModelShape) -> ModelShape:
    """`shape`, with the values that it does not have taken from `other`.

    Expert groups are neither compared nor taken: a source that does not tell them has the default 1 there.

    Raises
    ------
    ShapeConflictError
        If both have a value and the two differ.
    """
    for name, first, second in (
        ("layers", shape.num_layers, other.num_layers),
        ("experts", shape.num_experts, other.num_experts),
        ("top_k", shape.top_k, other.top_k),
        ("MoE layer ids", shape.moe_layer_ids, other.moe_layer_ids),
        ("hidden layers", shape.num_hidden_layers, other.num_hidden_layers),
    ):
        if first is not None and second is not None and first != second:
            raise ShapeConflictError(name, _text(first), _text(second))
    return replace(
        shape,
        top_k=other.top_k if shape.top_k is None else shape.top_k,
        moe_layer_ids=other.moe_layer_ids if shape.moe_layer_ids is None else shape.moe_layer_ids,
        num_hidden_layers=other.num_hidden_layers if shape.num_hidden_layers is None else shape.num_hidden_layers,
        name=other.name if shape.name is None else shape.name,
        expert_bytes=other.expert_bytes if shape.expert_bytes is None else shape.expert_bytes,
    )


def required_layer_ids(format_name: str, shape: ModelShape) -> tuple[int, ...]:
    """Absolute ids of the MoE layers, for files that number layers by their index in the whole model.

    Raises
    ------
    InputError
        If they are unknown, and the model may have dense layers.
    """
    if shape.moe_layer_ids is not None:
        return shape.moe_layer_ids
    if shape.num_hidden_layers == shape.num_layers:
        return tuple(range(shape.num_layers))
    raise InputError(
        f"{format_name} files number layers by their index in the whole model, dense layers counted, and the ids of "
        f"the {shape.num_layers} MoE layers are unknown: give moe_layer_ids (--moe-layers)"
    )


def required_hidden_layers(format_name: str, shape: ModelShape) -> tuple[tuple[int, ...], int]:
    """Ids of the MoE layers and number of all layers, for files that have a row for every layer of the model.

    Raises
    ------
    InputError
        If one of them is unknown.
    """
    unknown = []
    if shape.moe_layer_ids is None and shape.num_hidden_layers != shape.num_layers:
        unknown.append("moe_layer_ids (--moe-layers)")
    if shape.num_hidden_layers is None:
        unknown.append("num_hidden_layers (--hidden-layers)")
    if unknown or shape.num_hidden_layers is None:
        raise InputError(
            f"{format_name} files have a row for every layer of the model, dense ones included, and which of them the "
            f"{shape.num_layers} MoE layers are is unknown: give {' and '.join(unknown)}"
        )
    return required_layer_ids(format_name, shape), shape.num_hidden_layers


def id_runs(ids: Sequence[int]) -> list[range]:
    """Ascending ids as runs of neighbours: 3, 4, 5, 9 are range(3, 6) and range(9, 10)."""
    runs: list[range] = []
    for i in ids:
        if runs and runs[-1].stop == i:
            runs[-1] = range(runs[-1].start, i + 1)
        else:
            runs.append(range(i, i + 1))
    return runs


def id_ranges(ids: Sequence[int]) -> str:
    """Ascending ids as text: "3-60, 62"."""
    return ", ".join(str(run.start) if len(run) == 1 else f"{run.start}-{run.stop - 1}" for run in id_runs(ids))


def _text(value: int | tuple[int, ...]) -> str:
    return id_ranges(value) if isinstance(value, tuple) else str(value)


def _check_positive(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{name} = {value!r}: expected an integer >= 1")
