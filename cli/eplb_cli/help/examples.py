"""Two examples of every command and its page of the manual, printed at the end of `--help`."""

from typing import Final, NamedTuple


class Examples(NamedTuple):
    """The end of a command's `--help`."""

    page: str
    """Page of the manual, from the root of the repository."""
    lines: tuple[str, ...]
    """Whole command lines."""

    def epilog(self) -> str:
        """The text below the options."""
        return "\n".join(("Examples:", *(f"  {line}" for line in self.lines), f"Manual: {self.page}"))


EXAMPLES: Final = {
    "plan": Examples(
        "docs/tutorial.md",
        (
            "eplb plan load.npz --ranks 32 --nodes 4 --redundant 32 -o plan.json",
            "eplb plan load.npz --previous live.json --max-moves 64 -o new.json",
        ),
    ),
    "compare": Examples(
        "docs/tutorial.md",
        (
            "eplb compare load.npz --ranks 8 --redundant 8",
            "eplb compare load.npz --plan live.json --plan new.json",
        ),
    ),
    "evaluate": Examples(
        "docs/reference/metrics.md",
        (
            "eplb evaluate plan.json load.npz",
            "eplb evaluate plan.json load.npz --trace tokens.parquet --traffic",
        ),
    ),
    "backtest": Examples(
        "docs/how-to/changing-traffic.md",
        (
            "eplb backtest history.parquet --ranks 8 --redundant 8 --window 4",
            "eplb backtest history.npz --ranks 8 --strategies greedy,scenario",
        ),
    ),
    "sweep": Examples(
        "docs/how-to/redundancy.md",
        (
            "eplb sweep load.npz --ranks 16 --redundant 0:64:16",
            "eplb sweep load.npz --ranks 16 --redundant 0:64:16 -o memory.png",
        ),
    ),
    "simulate": Examples(
        "docs/how-to/online.md",
        (
            "eplb simulate history.npz --ranks 8 --redundant 8 --interval 20",
            "eplb simulate history.npz --ranks 8 --policy never,incremental",
        ),
    ),
    "replay": Examples(
        "docs/how-to/replay.md",
        (
            "eplb replay history.npz --model moe-435m --calibration h200 --online -r 8",
            "eplb replay history.npz --model moe-435m --calibration h200 --plan plan.json",
        ),
    ),
    "report": Examples(
        "docs/how-to/read-a-report.md",
        (
            "eplb report load.npz --ranks 8 --redundant 8 -o report.html",
            "eplb report load.npz --plan old.json --plan new.json -o pictures/",
        ),
    ),
    "diff": Examples(
        "docs/how-to/replan.md",
        (
            "eplb diff live.json new.json",
            "eplb diff live.json new.json --expert-bytes 42MiB",
        ),
    ),
    "convert": Examples(
        "docs/reference/file-formats.md",
        (
            "eplb convert plan.json sglang.json --to sglang",
            "eplb convert map.json plan.json --to native --ranks 8 --num-experts 64",
        ),
    ),
    "check": Examples(
        "docs/how-to/sglang.md",
        (
            "eplb check sglang.json --engine sglang --ranks 8",
            "eplb check map.json --engine ascend --ranks 16 --num-experts 256",
        ),
    ),
    "verify": Examples(
        "docs/how-to/verify.md",
        (
            "eplb verify plan.json --processes 2",
            "eplb verify plan.json --trace tokens.parquet --exchange alltoall",
        ),
    ),
    "advise": Examples(
        "docs/how-to/advise.md",
        (
            "eplb advise load.npz --model deepseek-v3 --calibration h200",
            "eplb advise load.npz --model deepseek-v3 --calibration h200 --nodes 1:4",
        ),
    ),
    "calibrate": Examples(
        "docs/how-to/calibrate.md",
        (
            "eplb calibrate -o gpu.json",
            "eplb calibrate -o cpu.json --device cpu --model moe-435m",
        ),
    ),
    "formats": Examples("docs/reference/file-formats.md", ("eplb formats", "eplb formats --json")),
    "strategies": Examples("docs/how-to/own-strategy.md", ("eplb strategies", "eplb strategies --json")),
    "env": Examples("docs/reference/cli.md", ("eplb env", "eplb env --json")),
    "trace info": Examples(
        "docs/reference/dialects.md",
        (
            "eplb trace info sample:moe-435m",
            "eplb trace info load.npz --ranks 8,16",
        ),
    ),
    "trace convert": Examples(
        "docs/reference/dialects.md",
        (
            "eplb trace convert dump.json load.npz",
            "eplb trace convert tokens.parquet packed.parquet --layout packed",
        ),
    ),
    "trace merge": Examples(
        "docs/reference/dialects.md",
        (
            "eplb trace merge chat.npz code.npz -o both.npz",
            "eplb trace merge rank0.npz rank1.npz --combine sum -o all.npz",
        ),
    ),
    "trace reduce": Examples(
        "docs/how-to/large-traces.md",
        (
            "eplb trace reduce 'tokens/*.parquet' -o load.npz",
            "eplb trace reduce 'tokens/*.parquet' -o load.npz --window 100 --combine time",
        ),
    ),
    "trace dialects": Examples("docs/reference/dialects.md", ("eplb trace dialects", "eplb trace dialects --json")),
    "trace record": Examples(
        "docs/how-to/record-a-model.md",
        (
            "eplb trace record model/ prompts.txt -o tokens.parquet",
            "eplb trace record model/ prompts.jsonl -o tokens.parquet --device cpu",
        ),
    ),
    "trace synth": Examples(
        "docs/reference/dialects.md",
        (
            "eplb trace synth load.npz --num-layers 4 --num-experts 64",
            "eplb trace synth tokens.parquet --preset v3-prefill --tokens 256",
        ),
    ),
    "cache build": Examples("docs/tutorial.md", ("eplb cache build", "eplb cache build --json")),
}


def epilog_of(command: str) -> str | None:
    """The end of the help of a command, "plan" or "trace info"; None for one without examples."""
    found = EXAMPLES.get(command)
    return None if found is None else found.epilog()
