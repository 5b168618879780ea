"""Defines the sets of names that options take. A name that is in none is refused with the one that was probably meant.

The names are those of the library's tables, which are imported when a value is checked or completed.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Final, final

import typer


def _nothing_else(_text: str) -> bool:
    return False


@final
@dataclass(frozen=True)
class Choice:
    """A set of names.

    Parameters
    ----------
    names
        The names, in the order in which they are listed.
    or_else
        Whether a value that is no name is accepted as well: a file, an object in a module.
    """

    names: Callable[[], Iterable[str]]
    or_else: Callable[[str], bool] = _nothing_else

    def one(self, text: str) -> str:
        """The value of an option, unchanged.

        Raises
        ------
        typer.BadParameter
            For a value that is none of the names.
        """
        names = list(self.names())
        if text in names or self.or_else(text):
            return text
        close = get_close_matches(text, names, n=1)
        meant = f"did you mean {close[0]}? " if close else ""
        raise typer.BadParameter(f"{text!r}: {meant}Expected one of {', '.join(names)}")

    def several(self, text: str) -> str:
        """Names with commas between them, without spaces; each is checked as by `one`."""
        return ",".join(self.one(part.strip()) for part in text.split(","))

    def complete(self, incomplete: str) -> list[str]:
        """The names that begin like this."""
        return [name for name in self.names() if name.startswith(incomplete)]


def _strategies() -> list[str]:
    from eplb.strategies import STRATEGIES
    from eplb.strategies.own_strategy import installed_strategies

    return list(dict.fromkeys(("auto", *STRATEGIES, *installed_strategies())))


def _names_an_object(text: str) -> bool:
    return ":" in text


def _dispatch_rules() -> Iterable[str]:
    from eplb.core.dispatch_rule import DispatchRule

    return [rule.value for rule in DispatchRule]


def _group_modes() -> Iterable[str]:
    from eplb.core.problem import GroupMode

    return [mode.value for mode in GroupMode]


def _losses() -> Iterable[str]:
    from eplb.core.problem import Survive

    return [unit.value for unit in Survive]


def _replicated_slots() -> Iterable[str]:
    from eplb.core.constraints import ReplicatedSlot

    return [slot.value for slot in ReplicatedSlot]


def _engines() -> Iterable[str]:
    from eplb.dispatch.engine_dispatch import ENGINES

    return ENGINES


def _engines_and_all() -> Iterable[str]:
    return (*_engines(), "all")


def _engines_with_files() -> Iterable[str]:
    from eplb.formats.engine_check import ENGINES

    return ENGINES


def _formats() -> Iterable[str]:
    from eplb.formats import FORMATS

    return FORMATS


def _dialects() -> Iterable[str]:
    from eplb_traces import READERS

    return READERS


def _combinations() -> Iterable[str]:
    from eplb_traces.combine import Combine

    return [how.value for how in Combine]


def _phases() -> Iterable[str]:
    from eplb.cost import Phase

    return [phase.value for phase in Phase]


def _phases_and_both() -> Iterable[str]:
    return (*_phases(), "both")


def _models() -> Iterable[str]:
    from eplb.cost import model_presets

    return model_presets()


def _gpus() -> Iterable[str]:
    from eplb.cost.gpu_datasheets import GPU_DATASHEETS

    return GPU_DATASHEETS


def _is_gpu_or_file(text: str) -> bool:
    return text.lower() in _gpus() or _is_file(text)


def _is_file(text: str) -> bool:
    return text.endswith(".json") or Path(text).exists()


def _policies() -> Iterable[str]:
    from eplb.online.replay import POLICIES

    return POLICIES


def _presets() -> Iterable[str]:
    from eplb_traces import PRESETS

    return PRESETS


def _trace_layouts() -> Iterable[str]:
    from eplb_traces.files.parquet_file import TraceLayout

    return [layout.value for layout in TraceLayout]


def _activations() -> Iterable[str]:
    from eplb.evaluation.link_traffic import Activation

    return [kind.value for kind in Activation]


def _image_formats() -> Iterable[str]:
    from eplb.report.style import ImageFormat

    return [kind.value for kind in ImageFormat]


def _exchanges() -> Iterable[str]:
    from eplb.runtime.exchange.backend_choice import BACKENDS

    return ("all", "auto", *BACKENDS)


def _overflows() -> Iterable[str]:
    from eplb.runtime import Overflow

    return [what.value for what in Overflow]


def _faults() -> Iterable[str]:
    from eplb.runtime import Fault

    return [fault.value for fault in Fault]


STRATEGY: Final = Choice(_strategies, _names_an_object)
DISPATCH: Final = Choice(_dispatch_rules)
GROUP_MODE: Final = Choice(_group_modes)
SURVIVE: Final = Choice(_losses)
REPLICATED_SLOT: Final = Choice(_replicated_slots)
ENGINE: Final = Choice(_engines)
ENGINE_OR_ALL: Final = Choice(_engines_and_all)
ENGINE_OF_FILE: Final = Choice(_engines_with_files)
FORMAT: Final = Choice(_formats)
"""Dialects of placement files."""
DIALECT: Final = Choice(_dialects)
"""Dialects of loads and traces."""
COMBINE: Final = Choice(_combinations)
PHASE: Final = Choice(_phases)
PHASE_OR_BOTH: Final = Choice(_phases_and_both)
MODEL: Final = Choice(_models, _is_file)
GPU: Final = Choice(_gpus, _is_gpu_or_file)
POLICY: Final = Choice(_policies)
PRESET: Final = Choice(_presets)
TRACE_LAYOUT: Final = Choice(_trace_layouts)
ACTIVATION: Final = Choice(_activations)
IMAGE_FORMAT: Final = Choice(_image_formats)
EXCHANGE: Final = Choice(_exchanges)
OVERFLOW: Final = Choice(_overflows)
FAULT: Final = Choice(_faults)
