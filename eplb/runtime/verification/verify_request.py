"""What a verification executes: processes, layers, tokens, exchange, injected fault."""

from dataclasses import dataclass, field
from typing import final

import numpy as np

from eplb.core.counts import check_count
from eplb.core.dispatch_rule import DispatchRule
from eplb.errors import InputError, UnknownNameError
from eplb.runtime.exchange.backend_choice import BACKENDS
from eplb.runtime.exchange.limits import ExchangeLimits
from eplb.runtime.verification.injected_faults import Fault
from eplb.runtime.verification.launch import Launch

_MOST_LAYERS = 4
"""Layers that are verified if none are named: the first, the last and some between."""


@final
@dataclass(frozen=True)
class VerifyRequest:
    """What to verify, and how.

    Parameters
    ----------
    launch
        Processes and communicator.
    tokens_per_rank
        Tokens of each rank of the plan.
    layers
        Layers to execute; empty: up to four, evenly spread.
    rule
        The rule by which replicas are chosen.
    exchange
        "all" backends in all modes, "auto", or the name of one backend.
    limits
        Sizes of the exchange buffers.
    hidden
        H of the probe experts, which replace the model's experts.
    top_k
        K of the random router; 0: K of the plan's model, or 8 if it is unknown, at most E.
    fault
        The fault to inject.
    seed
        Seed of the hidden states and the router.
    """

    launch: Launch = field(default_factory=lambda: Launch(2))
    tokens_per_rank: int = 64
    layers: tuple[int, ...] = ()
    rule: DispatchRule = DispatchRule.EVEN
    exchange: str = "all"
    limits: ExchangeLimits = field(default_factory=ExchangeLimits)
    hidden: int = 32
    top_k: int = 0
    fault: Fault = Fault.NONE
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("tokens_per_rank", "hidden"):
            check_count(name, getattr(self, name))
        if self.exchange not in ("all", "auto", *BACKENDS):
            raise UnknownNameError("exchange", self.exchange, ("all", "auto", *BACKENDS))


def read_layers(text: str, num_layers: int) -> tuple[int, ...]:
    """Parse "0,5" or "all"; an empty text gives no layers.

    Raises
    ------
    InputError
        For any other text.
    """
    if text == "all":
        return tuple(range(num_layers))
    try:
        return tuple(int(word) for word in text.split(",") if word)
    except ValueError:
        raise InputError(f"layers {text!r}: expected numbers like 0,5 or all") from None


def chosen_layers(num_layers: int, wanted: tuple[int, ...]) -> tuple[int, ...]:
    """The wanted layers, ascending; if none are named, up to four, evenly spread.

    Raises
    ------
    InputError
        If there is no such layer.
    """
    for layer in wanted:
        if not 0 <= layer < num_layers:
            raise InputError(f"layer {layer}: expected 0 <= layer < {num_layers}")
    if wanted:
        return tuple(sorted(set(wanted)))
    spread = np.linspace(0, num_layers - 1, min(num_layers, _MOST_LAYERS))
    return tuple(int(layer) for layer in spread.round())
