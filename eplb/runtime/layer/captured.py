"""Captures MoE layers of one process, from router to output, in one CUDA graph and replays it.

T tokens, the capacity of the graph   H hidden

    x_TH, token_ids_T, used   -> gate -> mask tokens >= used -> slots -> rows -> experts -> combine -> y_TH
    fixed buffers                 ... the next layer takes y_TH, and so on

Routing, maps (`PlacementTables.publish` writes in place) and the number of tokens may change between replays.
"""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from eplb.core.dispatch_rule import DispatchRule
from eplb.errors import InputError
from eplb.runtime.exchange.static_rows import StaticRows
from eplb.runtime.layer.gate import GateChoice
from eplb.runtime.layer.moe_layer import MoeLayer, route
from eplb.runtime.layer.replica_choice import TokenSource


@final
class CapturedLayers:
    """Layers in one graph; each layer's output is the next one's input.

    Parameters
    ----------
    layers
        Layers with the backend `StaticRows`.
    source
        Where the T tokens come from.
    x_TH
        An input of the right type and width on the GPU; its values are used to warm up.

    Raises
    ------
    InputError
        Without a GPU, for another backend, or for the replica rule `online`, which exchanges counts.
    """

    def __init__(self, layers: Sequence[MoeLayer], source: TokenSource, x_TH: Tensor) -> None:
        check_capturable(layers)
        if not x_TH.is_cuda:
            raise InputError(f"captured layers: the input is on {x_TH.device}, expected a GPU")
        self._layers, self._source = layers, source
        self._x_TH = x_TH.clone()
        self._token_ids_T = torch.zeros(x_TH.shape[0], dtype=torch.int64, device=x_TH.device)
        self._used = torch.full((), x_TH.shape[0], dtype=torch.int64, device=x_TH.device)
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # untyped in torch
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self._run()  # compiles kernels and times the candidates of the experts
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._y_TH = self._run()

    def __call__(self, x_TH: Tensor, token_ids_T: Tensor) -> Tensor:
        """Replay the graph for up to T tokens; the result is overwritten by the next call.

        Raises
        ------
        InputError
            For more tokens than the capacity.
        """
        num_tokens, capacity = x_TH.shape[0], self._x_TH.shape[0]
        if num_tokens > capacity:
            raise InputError(f"{num_tokens} tokens: the graph was captured for at most {capacity}")
        self._x_TH[:num_tokens].copy_(x_TH)
        self._token_ids_T[:num_tokens].copy_(token_ids_T)
        self._used.fill_(num_tokens)
        self._graph.replay()
        return self._y_TH[:num_tokens]

    def _run(self) -> Tensor:
        y_TH = self._x_TH
        for layer in self._layers:
            y_TH = masked_layer(layer, y_TH, self._token_ids_T, self._source, self._used)
        return y_TH


def masked_layer(layer: MoeLayer, x_TH: Tensor, token_ids_T: Tensor, source: TokenSource, used: Tensor) -> Tensor:
    """[T, H] a layer's output for the first `used` tokens, a number on the device; the others go to no expert."""
    choice = layer.gate(x_TH, token_ids_T)
    is_used_T1 = (torch.arange(x_TH.shape[0], device=x_TH.device) < used)[:, None]
    choice = GateChoice(torch.where(is_used_T1, choice.expert_ids_TK, -1), choice.weight_TK)
    handle = layer.backend.plan_exchange(route(choice, source, layer.tables, layer.layer, layer.group))
    return layer.execute(x_TH, handle) + layer.shared(x_TH)


def check_capturable(layers: Sequence[MoeLayer]) -> None:
    """Refuse layers that wait for the device.

    Raises
    ------
    InputError
        For no layers, another backend than `StaticRows`, or the replica rule `online`.
    """
    if not layers:
        raise InputError("captured layers: none were given")
    for layer in layers:
        if not isinstance(layer.backend, StaticRows):
            raise InputError(f"layer {layer.layer}: backend {layer.backend.name} waits for the device, expected static")
        if layer.tables.rule is DispatchRule.ONLINE:
            raise InputError(
                f"layer {layer.layer}: the replica rule online exchanges counts, which a graph cannot hold"
            )
