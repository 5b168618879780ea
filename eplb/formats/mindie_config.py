"""Reads the part of MindIE's service `config.json` that decides which rank holds which experts; the rest is ignored.

The keys, all below ``BackendConfig``: `multiNodesInferEnabled`, and of ``ModelDeployConfig.ModelConfig[0]`` the sizes
`worldSize tp dp cp sp moe_tp moe_ep` and, for one model under `models`, `ep_level`, `enable_init_routing_cutoff`,
`topk_scaling_factor`, `alltoall_ep_buffer_scale_factors` and `eplb` (`level`, `expert_map_file`,
`num_redundant_experts`). Source: MindIE 2.3.0 documentation, pages "Configuration Parameters (Model Side)" and "Expert
Parallelism"; absent sizes as in MindIE-LLM's `parallel_info_manager.py`.
"""

from dataclasses import dataclass
from enum import IntEnum
from math import prod
from pathlib import Path
from typing import final

from eplb.core.topology import Topology
from eplb.errors import FormatError, InputError
from eplb.formats.json_fields import as_int, as_list, as_number, as_object, as_text, error_context, load_json
from eplb.formats.mindie_layout import ParallelLayout

_SIZES = ("tp", "dp", "cp", "sp", "moe_tp", "moe_ep")
_ABSENT = -1


class EpLevel(IntEnum):
    """How MindIE exchanges tokens for experts."""

    ALLGATHER = 1
    """AllGather of all tokens; `topk_scaling_factor` may cut the sorted rows."""
    ALLTOALL = 2
    """AllToAll in buffers of `buffer_scale_factors`, fused into compute."""


@final
@dataclass(frozen=True, kw_only=True)
class MindieConfig:
    """The expert parallelism of a MindIE deployment; see `read_mindie_config`."""

    layout: ParallelLayout
    ranks_per_server: int
    """NPUs of a server."""
    ep_level: EpLevel
    buffer_scale_factors: tuple[tuple[int, float], ...]
    """(length, factor) by falling length, for `EpLevel.ALLTOALL`; empty where MindIE's own table is to be used."""
    topk_scaling_factor: float
    """Share of the sorted rows that is kept, for `EpLevel.ALLGATHER`; 1 keeps all."""
    num_redundant_experts: int
    expert_map_file: str
    """The placement that the deployment loads; empty for none."""

    @property
    def num_servers(self) -> int:
        """Servers of the deployment."""
        return self.layout.world_size // self.ranks_per_server

    @property
    def exchange(self) -> str:
        """The runtime's backend for the level: "allgather" or "alltoall"."""
        return "alltoall" if self.ep_level is EpLevel.ALLTOALL else "allgather"

    def check_ranks(self, num_ranks: int) -> None:
        """Refuse a placement for another number of ranks.

        Raises
        ------
        InputError
            If `num_ranks` is not moe_ep.
        """
        if num_ranks != self.layout.moe_ep:
            raise InputError(f"a placement for {num_ranks} ranks: the MindIE config has moe_ep = {self.layout.moe_ep}")

    def topology(self, num_experts: int, num_redundant: int) -> Topology:
        """The topology to plan for: moe_ep ranks, on nodes where each server holds a whole number of them.

        Raises
        ------
        PlacementError
            If the slots do not divide by the ranks.
        """
        moe_ep = self.layout.moe_ep
        num_nodes = self.num_servers if moe_ep % self.num_servers == 0 else 1
        return Topology.for_experts(num_experts, num_ranks=moe_ep, num_nodes=num_nodes, num_redundant=num_redundant)


def read_mindie_config(path: Path) -> MindieConfig:
    """The expert parallelism of a MindIE service.

    Where `multiNodesInferEnabled`, `worldSize` counts the NPUs of one server and the sizes tell the number of servers.

    Raises
    ------
    FormatError
        With the JSON path: a needed key that is missing, a value of the wrong kind, sizes that contradict each other.
    """
    place = f"{path}: $"
    backend, place = _child(as_object(load_json(path), place), "BackendConfig", place)
    deploy, deploy_place = _child(backend, "ModelDeployConfig", place)
    models = as_list(_needed(deploy, "ModelConfig", deploy_place), f"{deploy_place}.ModelConfig")
    if len(models) != 1:
        raise FormatError(f"{deploy_place}.ModelConfig has {len(models)} entries: expected one model")
    place_of_model = f"{deploy_place}.ModelConfig[0]"
    model = as_object(models[0], place_of_model)
    many_servers = _flag(backend, "multiNodesInferEnabled", place)
    layout, ranks_per_server = _layout(model, place_of_model, many_servers=many_servers)
    options, options_place = _model_options(model, place_of_model)
    eplb, eplb_place = _optional_child(options, "eplb", options_place)
    return MindieConfig(
        layout=layout,
        ranks_per_server=ranks_per_server,
        ep_level=_ep_level(options, options_place),
        buffer_scale_factors=_scale_factors(options, options_place),
        topk_scaling_factor=_kept_share(options, options_place),
        num_redundant_experts=as_int(eplb.get("num_redundant_experts", 0), f"{eplb_place}.num_redundant_experts"),
        expert_map_file=as_text(eplb.get("expert_map_file", ""), f"{eplb_place}.expert_map_file"),
    )


def _layout(model: dict[str, object], place: str, *, many_servers: bool) -> tuple[ParallelLayout, int]:
    """The layout over all servers, and the ranks of a server."""
    ranks_per_server = as_int(_needed(model, "worldSize", place), f"{place}.worldSize", 1)
    given = {name: _size(model, name, place) for name in _SIZES}
    world_size = ranks_per_server
    if many_servers:
        explicit = [given[n] for n in ("tp", "dp", "cp") if given[n] != _ABSENT] if given["tp"] != _ABSENT else []
        world_size = prod(explicit) if explicit else ranks_per_server
        if world_size % ranks_per_server:
            raise FormatError(
                f"{place}: tp x dp x cp = {world_size} ranks: expected a multiple of worldSize = {ranks_per_server}, "
                "the NPUs of one server"
            )
    # What MindIE takes for an absent size: tp and moe_tp span the world, the others are off.
    whole = {"tp": world_size, "moe_tp": world_size // max(1, given["moe_ep"])}
    sizes = {name: whole.get(name, 1) if size == _ABSENT else size for name, size in given.items()}
    with error_context(place):
        layout = ParallelLayout(world_size=world_size, **sizes)
    if layout.cp > 1 and (layout.dp > 1 or layout.sp != layout.tp):
        raise FormatError(
            f"{place}: cp = {layout.cp} with dp = {layout.dp}, sp = {layout.sp}: "
            f"expected dp = 1 and sp = tp = {layout.tp}, MindIE's rule for context parallelism"
        )
    return layout, ranks_per_server


def _size(model: dict[str, object], name: str, place: str) -> int:
    value = model.get(name, _ABSENT)
    return _ABSENT if value == _ABSENT and type(value) is int else as_int(value, f"{place}.{name}", 1)


def _model_options(model: dict[str, object], place: str) -> tuple[dict[str, object], str]:
    """The options of the one model under `models`; empty where the file has none."""
    models, place = _optional_child(model, "models", place)
    if len(models) > 1:
        raise FormatError(f"{place} names {', '.join(models)}: expected the options of one model")
    for name in models:
        return _child(models, name, place)
    return {}, place


def _ep_level(options: dict[str, object], place: str) -> EpLevel:
    level = as_int(options.get("ep_level", EpLevel.ALLGATHER.value), f"{place}.ep_level", 1)
    if level not in list(EpLevel):
        raise FormatError(f"{place}.ep_level = {level}: expected 1 (AllGather) or 2 (AllToAll)")
    return EpLevel(level)


def _kept_share(options: dict[str, object], place: str) -> float:
    """`topk_scaling_factor` where the cutoff is enabled, else 1."""
    share = as_number(options.get("topk_scaling_factor", 1.0), f"{place}.topk_scaling_factor")
    if not 0 < share <= 1:
        raise FormatError(f"{place}.topk_scaling_factor = {share}: expected 0 < factor <= 1")
    return share if _flag(options, "enable_init_routing_cutoff", place) else 1.0


def _scale_factors(options: dict[str, object], place: str) -> tuple[tuple[int, float], ...]:
    place = f"{place}.alltoall_ep_buffer_scale_factors"
    rows = as_list(options.get("alltoall_ep_buffer_scale_factors", []), place)
    factors: list[tuple[int, float]] = []
    for index, row in enumerate(rows):
        pair = as_list(row, f"{place}[{index}]")
        if len(pair) != 2:
            raise FormatError(f"{place}[{index}] has {len(pair)} entries: expected [length, factor]")
        length, factor = as_int(pair[0], f"{place}[{index}][0]"), as_number(pair[1], f"{place}[{index}][1]")
        if factor == 0:
            raise FormatError(f"{place}[{index}][1] = 0: expected a factor > 0")
        if factors and length >= factors[-1][0]:
            raise FormatError(f"{place}[{index}][0] = {length}: expected lengths to fall, after {factors[-1][0]}")
        factors.append((length, factor))
    return tuple(factors)


def _flag(fields: dict[str, object], key: str, place: str) -> bool:
    """A boolean; MindIE also writes them as text. Absent is false, as MindIE has it."""
    values: dict[object, bool] = {"true": True, "false": False}
    value = fields.get(key, False)
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value in values:
        return values[value]
    raise FormatError(f"{place}.{key} = {value!r}: expected true or false")


def _needed(fields: dict[str, object], key: str, place: str) -> object:
    if key not in fields:
        raise FormatError(f"{place}: key {key!r} is missing")
    return fields[key]


def _child(fields: dict[str, object], key: str, place: str) -> tuple[dict[str, object], str]:
    return as_object(_needed(fields, key, place), f"{place}.{key}"), f"{place}.{key}"


def _optional_child(fields: dict[str, object], key: str, place: str) -> tuple[dict[str, object], str]:
    return as_object(fields.get(key, {}), f"{place}.{key}"), f"{place}.{key}"
