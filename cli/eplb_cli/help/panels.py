"""Assigns every option and every command to a panel of `--help`. An option is in the same panel in all commands."""

from typing import Final

OPTION_PANELS: Final[dict[str, tuple[str, ...]]] = {
    "Topology": (
        *("--ranks", "--nodes", "--redundant", "--gpus-per-node", "--mindie-config"),
        *("--processes", "--backend", "--device", "--virtual", "--bandwidth"),
    ),
    "Engine and dispatch": ("--engine", "--engine-option", "--dispatch", "--sources"),
    "Strategy and objective": (
        *("--strategy", "--strategies", "--groups", "--group-mode", "--group-price", "--survive", "--time-limit"),
        *("--constraints", "--replicate-everywhere", "--replicated-slot", "--trace", "--load-cap", "--pareto"),
        *("--held-out", "--decode-load", "--traffic", "--hidden-size", "--activation", "--seed"),
    ),
    "Live placement": (
        *("--previous", "--target", "--max-moves", "--lost-ranks", "--retire-ranks", "--rank-map", "--slots"),
        *("--previous-ranks", "--previous-nodes", "--keep-rank-ids", "--plan", "--plan-from"),
    ),
    "Replanning": (*("--interval", "--policy", "--price", "--memory", "--online", "--every", "--layers-per-step"),),
    "Predicted time": (
        *("--calibration", "--model", "--phase", "--tokens-per-rank", "--dtype", "--slo-ms", "--rest-bytes"),
        *("--reserve-bytes", "--expert-bytes"),
    ),
    "Execution": (
        *("--exchange", "--overflow", "--buffer-scale-factors", "--topk-scaling-factor", "--inject", "--load"),
        *("--record", "--max-new-tokens", "--batch-size", "--ray"),
    ),
    "Synthetic traffic": ("--preset", "--tokens", "--num-windows", "--num-layers", "--as-load"),
    "Load": (
        *("--from", "--num-experts", "--top-k", "--moe-layers", "--hidden-layers", "--window", "--combine"),
        *("--ignore-ids", "--ignore-columns", "--recorded-under"),
    ),
    "Output": ("--output", "--to", "--layout", "--layers", "--image-format", "--all", "--json", "--csv"),
}
"""{panel: options, by their first long name}; a panel is shown where a command has one of its options."""

COMMAND_PANELS: Final[dict[str, tuple[str, ...]]] = {
    "Plan": ("plan", "compare", "sweep", "advise"),
    "Judge": ("evaluate", "report", "backtest", "simulate", "replay", "diff"),
    "Traces and placement files": ("trace", "convert", "check"),
    "Execute": ("verify", "calibrate"),
    "About eplb": ("formats", "strategies", "env", "cache"),
}
"""{panel: commands}."""


def panel_of_option(name: str) -> str | None:
    """The panel of an option by its first long name; None for one that is in no panel."""
    return _panel_of(name, OPTION_PANELS)


def panel_of_command(name: str) -> str | None:
    """The panel of a command on `eplb --help`; None for one that is in no panel."""
    return _panel_of(name, COMMAND_PANELS)


def _panel_of(name: str, panels: dict[str, tuple[str, ...]]) -> str | None:
    return next((panel for panel, names in panels.items() if name in names), None)
