"""Captures MoE layers of a process, from router to output, in one CUDA graph and replays it.

T tokens, the capacity of the graph   H hidden

    x_TH, token_ids_T, used   -> gate -> mask tokens >= used -> slots -> rows -> experts -> combine -> y_TH
    fixed buffers                 ... the next layer takes y_TH, and so on

Routing, maps (`PlacementTables.publish` writes in place) and the number of tokens may change between replays. Several
processes replay the same number of times; each may have other tokens.
"""

from collections.abc import Sequence
from typing import Protocol, final

import torch
from torch import Tensor

from eplb.errors import InputError
from eplb.runtime.exchange.protocol import Backend, ExchangeHandle, FixedBuffers, RoutingPlan
from eplb.runtime.exchange.rank_group import RankGroup
from eplb.runtime.exchange.static_rows import StaticRows
from eplb.runtime.experts.slot_experts import SlotExperts
from eplb.runtime.experts.timed_experts import TimedExperts
from eplb.runtime.layer.device_route import device_slots, host_reason
from eplb.runtime.layer.gate import Gate, GateChoice
from eplb.runtime.layer.placement_tables import PlacementTables
from eplb.runtime.layer.replica_choice import TokenSource


class Capturable(Protocol):
    """What a graph needs of a layer: a `MoeLayer`."""

    @property
    def layer(self) -> int: ...  # noqa: D102  # those of `MoeLayer`

    @property
    def gate(self) -> Gate: ...  # noqa: D102

    @property
    def tables(self) -> PlacementTables: ...  # noqa: D102

    @property
    def group(self) -> RankGroup: ...  # noqa: D102

    @property
    def backend(self) -> Backend: ...  # noqa: D102

    @property
    def experts(self) -> SlotExperts: ...  # noqa: D102

    def shared(self, x_TH: Tensor, /) -> Tensor: ...  # noqa: D102

    def execute(self, x_TH: Tensor, handle: ExchangeHandle) -> Tensor: ...  # noqa: D102


@final
class CapturedLayers:
    """Layers in one graph; each layer's output is the next one's input.

    Where there can be no graph, on a CPU or under a replica rule that needs the host, the same calls run eagerly.

    Parameters
    ----------
    layers
        The layers.
    source
        Where the T tokens come from.
    x_TH
        An input of the right type and width; its values are used to warm up.
    exchange
        The buffers through which all layers exchange their tokens, see `fixed_buffers`; None: the backends of the
        layers, on a GPU `StaticRows`, which is for one process.

    Raises
    ------
    InputError
        On a GPU for layers that wait for the device, or if the buffers have another capacity than T or the source
        another number of tokens.
    """

    reason: str
    """Why the layers run eagerly; empty if a graph is replayed."""

    def __init__(
        self, layers: Sequence[Capturable], source: TokenSource, x_TH: Tensor, exchange: FixedBuffers | None = None
    ) -> None:
        if not layers:
            raise InputError("captured layers: none were given")
        if exchange is not None and exchange.slot_TK.shape[0] != x_TH.shape[0]:
            raise InputError(f"buffers for {exchange.slot_TK.shape[0]} tokens: expected {x_TH.shape[0]}, as the input")
        source.check_tokens(x_TH.shape[0])
        self.exchange, self._layers, self._source = exchange, layers, source
        self._x_TH = x_TH.clone(memory_format=torch.contiguous_format)
        self._token_ids_T = torch.zeros(x_TH.shape[0], dtype=torch.int64, device=x_TH.device)
        self._used = torch.full((), x_TH.shape[0], dtype=torch.int64, device=x_TH.device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self.reason = f"the input is on {x_TH.device}, and graphs need a GPU"
        if x_TH.is_cuda:
            self.reason = next((reason for layer in layers if (reason := host_reason(layer.tables))), "")
        if not self.reason:
            if exchange is None:
                check_capturable(layers)
            self._capture()

    def __call__(self, x_TH: Tensor, token_ids_T: Tensor) -> Tensor:
        """Replay the graph for up to T tokens; the result is overwritten by the next call.

        Raises
        ------
        InputError
            For more tokens than the capacity, rows of another width, or another number of token ids.
        """
        num_tokens, capacity = x_TH.shape[0], self._x_TH.shape[0]
        if num_tokens > capacity:
            raise InputError(f"{num_tokens} tokens: the graph was captured for at most {capacity}")
        if x_TH.shape[1:] != self._x_TH.shape[1:] or token_ids_T.shape != (num_tokens,):
            raise InputError(
                f"rows {tuple(x_TH.shape)} and token ids {tuple(token_ids_T.shape)}: expected rows of width "
                f"{self._x_TH.shape[1]} and an id for each"
            )
        self._x_TH[:num_tokens].copy_(x_TH)
        self._token_ids_T[:num_tokens].copy_(token_ids_T)
        self._used.fill_(num_tokens)
        if self._graph is None:
            return self._run()[:num_tokens]
        self._graph.replay()
        return self._y_TH[:num_tokens]

    def raise_on_error(self) -> None:
        """Raise what the kernels of any process reported; the host waits for the device.

        Raises
        ------
        ExchangeTimeoutError
            If a process waited too long for another.
        ExchangeOverflowError
            If tokens or rows exceed the buffers, or a slot does not exist.
        ExchangeEpochError
            If the processes routed the last layer by different maps.
        """
        if self.exchange is not None:
            self.exchange.raise_on_error()

    def __repr__(self) -> str:
        """Layers, capacity, exchange, and graph or the reason why there is none."""
        exchange = self._layers[0].backend.name if self.exchange is None else self.exchange.name
        how = f"eager: {self.reason}" if self.reason else "one graph"
        return f"CapturedLayers({len(self._layers)} layers, {self._x_TH.shape[0]} tokens, {exchange}, {how})"

    def _capture(self) -> None:
        self._prepare_experts()
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # untyped in torch
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self._run()  # compiles and loads every kernel on all processes
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        self.raise_on_error()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):  # communicators use other threads
            self._y_TH = self._run()

    def _prepare_experts(self) -> None:
        """Time the experts on the buffers, of which the rows of T tokens are in use on average."""
        if self.exchange is None:
            return
        rows, in_use = self.exchange.rows_MH.shape[0], self.exchange.slot_TK.numel()
        for experts in {id(layer.experts): layer.experts for layer in self._layers}.values():
            if isinstance(experts, TimedExperts):
                experts.prepare(rows, expected_rows=min(in_use, rows))

    def _run(self) -> Tensor:
        y_TH = self._x_TH
        for layer in self._layers:
            y_TH = masked_layer(layer, y_TH, self._token_ids_T, self._source, self._used, self.exchange)
        return y_TH


def masked_layer(  # noqa: PLR0913  # what a layer is called with, and the capacity's two additions
    layer: Capturable,
    x_TH: Tensor,
    token_ids_T: Tensor,
    source: TokenSource,
    used: Tensor,
    exchange: FixedBuffers | None = None,
) -> Tensor:
    """[T, H] a layer's output for the first `used` tokens, a number on the device; the others go to no expert.

    Raises
    ------
    InputError
        If the buffers are made for another K than the gate chooses.
    """
    choice = layer.gate(x_TH, token_ids_T)
    is_used_T1 = (torch.arange(x_TH.shape[0], device=x_TH.device) < used)[:, None]
    choice = GateChoice(torch.where(is_used_T1, choice.expert_ids_TK, -1), choice.weight_TK)
    slot_TK = device_slots(choice, source, layer.tables, layer.layer, layer.group)
    epoch = layer.tables.epoch_L[layer.layer].clone()
    if exchange is None:
        handle = layer.backend.plan_exchange(RoutingPlan(slot_TK, choice.weight_TK, source, epoch))
        return layer.execute(x_TH, handle) + layer.shared(x_TH)
    if exchange.slot_TK.shape != slot_TK.shape:
        raise InputError(f"choices {tuple(slot_TK.shape)}: the buffers are made for {tuple(exchange.slot_TK.shape)}")
    exchange.slot_TK.copy_(slot_TK)
    exchange.weight_TK.copy_(choice.weight_TK)
    exchange.map_epoch.copy_(epoch)
    exchange.num_tokens.copy_(used)
    x_MH, ends_S = exchange.dispatch(x_TH), exchange.ends_S
    y_MH = layer.experts.forward(layer.layer, x_MH, ends_S.diff(prepend=ends_S.new_zeros(1)))
    return torch.where(is_used_T1, exchange.combine(y_MH), 0) + layer.shared(x_TH)


def check_capturable(layers: Sequence[Capturable]) -> None:
    """Refuse backends that wait for the device.

    Raises
    ------
    InputError
        For another backend than `StaticRows`.
    """
    for layer in layers:
        if not isinstance(layer.backend, StaticRows):
            raise InputError(
                f"layer {layer.layer}: backend {layer.backend.name} waits for the device, expected static or buffers"
            )
