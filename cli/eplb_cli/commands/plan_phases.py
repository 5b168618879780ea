"""`eplb plan --phase both`: a plan for prefill and one for decode, and the price of sharing one."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, final

from eplb_cli import output
from eplb_cli.arguments.engine import Dispatch
from eplb_cli.arguments.phase_options import PhaseOptions
from eplb_cli.views import plan_rows

if TYPE_CHECKING:
    from eplb.core.problem import Problem
    from eplb.planning.two_phases import PhasePlans
    from eplb_traces import ExpertLoad

_PLANS: Final = ("plan of prefill", "plan of decode", "one plan for both")


@final
@dataclass(frozen=True)
class PhaseFiles:
    """Where the two plans are written."""

    out: Path | None
    format: str

    def paths(self) -> dict[str, Path]:
        """plan.prefill.json and plan.decode.json for plan.json; nothing without a file."""
        if self.out is None:
            return {}
        return {phase: self.out.with_suffix(f".{phase}{self.out.suffix}") for phase in ("prefill", "decode")}


def make_phase_plans(problem: "Problem", decode_load: "ExpertLoad", asked: PhaseOptions, *, seed: int) -> "PhasePlans":
    """Plan for both phases; the problem has the load of prefill."""
    from dataclasses import replace

    from eplb.planning.phase import phase_target
    from eplb.planning.two_phases import PhaseProblem, plan_phases

    phases = []
    for name, load, tokens in zip(("prefill", "decode"), (problem.load, decode_load), asked.tokens(), strict=True):
        target = phase_target(name, asked.calibration, asked.model, tokens, asked.dtype)
        if target is not None:
            phases.append(PhaseProblem(replace(problem, load=load.without_empty_windows()), target))
    prefill, decode = phases
    with output.progress("planning"):
        return plan_phases(prefill, decode, seed=seed)


def show_phase_plans(found: "PhasePlans", to: PhaseFiles, by: Dispatch, *, as_json: bool) -> None:
    """Write the plans of the two phases, then print what each plan costs in either phase."""
    from eplb.formats import FORMATS, write_plan

    made = {"prefill": found.prefill, "decode": found.decode}
    flags = {}
    for phase, path in to.paths().items():
        if by.target is not None:
            by.target.check(made[phase].placement)
        write_plan(made[phase], path, to.format)
        server = FORMATS[to.format].server_flags if by.target is None else by.target.flags
        flags[phase] = server(path, made[phase])
    if as_json:
        output.json_object(_as_object(found) | {"written": {name: str(path) for name, path in to.paths().items()}})
        return
    for phase, plan in made.items():
        plan_rows.show_step_times(plan)
        for note in plan.notes:
            output.line(f"note: {phase}: {note}")
        output.line("")
    output.table(
        "The price of sharing: expert FFN of the slowest rank, ms",
        ("", "prefill", "slower %", "decode", "slower %"),
        [
            (
                name,
                *(
                    cell
                    for s, more in zip(times, price, strict=True)
                    for cell in (f"{1e3 * s:.3f}", output.percentage(more))
                ),
            )
            for name, times, price in zip(_PLANS, found.seconds.tolist(), found.price.tolist(), strict=True)
        ],
    )
    for phase, path in to.paths().items():
        output.written(path, to.format, flags[phase])


def _as_object(found: "PhasePlans") -> dict[str, object]:
    names = ("prefill", "decode", "shared")
    return {
        "plans": {
            name: {"notes": list(plan.notes), **plan_rows.step_times_object(plan)}
            for name, plan in (("prefill", found.prefill), ("decode", found.decode))
        },
        "seconds": {
            name: {"prefill": row[0], "decode": row[1]} for name, row in zip(names, found.seconds.tolist(), strict=True)
        },
        "slower": {
            name: {"prefill": row[0], "decode": row[1]} for name, row in zip(names, found.price.tolist(), strict=True)
        },
    }
