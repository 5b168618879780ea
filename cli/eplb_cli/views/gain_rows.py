"""Shows what a plan is worth: the balance before and after it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from eplb_cli.arguments.engine import Dispatch

if TYPE_CHECKING:
    from eplb.evaluation.metrics import Evaluation
    from eplb.planning.gain import Gain


@final
@dataclass(frozen=True)
class Worth:
    """A plan against what is there without it, and notes that are shown and not written to the plan's file."""

    gain: "Gain"
    hints: tuple[str, ...] = ()

    def headline(self, by: Dispatch) -> str:
        """One sentence: the busiest over mean rank before and after, and the lower bound."""
        from eplb.planning.gain import mean_max_over_mean

        gain = self.gain
        was, now = mean_max_over_mean(gain.before), mean_max_over_mean(gain.after)
        how = f"{by.in_sentence} (bound {gain.bound:.4f})"
        if not gain.changed:
            return f"today ({gain.name}): nothing gained, unchanged at {was:.4f} {how}"
        return f"today ({gain.name}) {was:.4f} -> {now:.4f} {how}"

    def fields(self) -> dict[str, object]:
        """The same for `--json`; `changed` for a replan."""
        of_live = {"changed": self.gain.changed} if self.gain.is_live else {}
        before = before_object(self.gain.name, self.gain.before)
        return {"before": before, "max_over_mean_bound": self.gain.bound, **of_live}


def before_object(name: str, before: "Evaluation") -> dict[str, object]:
    """A placement before the plan, for `--json`: its name and balance."""
    return {"placement": name, **before.balance}
