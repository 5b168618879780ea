"""`eplb calibrate`: measures the GPU it runs on for the cost model."""

from pathlib import Path
from typing import Annotated

import typer

from eplb_cli import output
from eplb_cli.arguments import choices, options


def calibrate(
    out: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Calibration, JSON.", show_default=False)],
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="NAME",
            parser=choices.MODEL.one,
            autocompletion=choices.MODEL.complete,
            help="Model whose expert shape is measured, or its config.json; may be given several times.",
            show_default="deepseek-v3, qwen3-235b-a22b, gpt-oss-120b, moe-435m; on the CPU moe-435m",
        ),
    ] = None,
    device: Annotated[str, typer.Option("--device", metavar="D", help="cuda or cpu.")] = "cuda",
    dtype: Annotated[str, typer.Option("--dtype", metavar="A,B", help="Types of weights: bf16, fp8.")] = "bf16",
    as_json: options.JsonOpt = False,
) -> None:  # fmt: skip
    """Measure the grouped FFN over tokens and experts, and the links where two GPUs are visible, and write a table.

    The table holds for every model: give models whose experts differ much in size.
    """
    from eplb.cost import model_sizes, write_calibration
    from eplb.errors import InputError
    from eplb.runtime.calibration.calibrate import CalibrationRequest
    from eplb.runtime.calibration.calibrate import calibrate as measure

    default = ["moe-435m"] if device == "cpu" else ["deepseek-v3", "qwen3-235b-a22b", "gpt-oss-120b", "moe-435m"]
    if not out.absolute().parent.is_dir():  # before minutes of measuring
        raise InputError(f"cannot write {out}: {out.absolute().parent} is no folder")
    models = tuple(model_sizes(name) for name in model or default)
    types = tuple(name.strip() for name in dtype.split(","))
    with output.progress("measuring"):
        found = measure(CalibrationRequest(models, types, device))
    write_calibration(found, out)
    fits = {name: ffn.fit for name, ffn in found.ffn.items() if ffn.fit is not None}
    links = (("inside a node", found.links.intra_node), ("between nodes", found.links.inter_node))
    if as_json:
        output.json_object({
            "path": str(out), "gpu": found.gpu, "machine": found.machine,
            "median_error": {name: fit.median_error for name, fit in fits.items()},
            "p95_error": {name: fit.p95_error for name, fit in fits.items()},
        })  # fmt: skip
        return
    output.facts(found.title, [("machine", found.machine)])
    output.table(
        "grouped FFN, error of the fit",
        ("type", "points", "median %", "p95 %", "kernel"),
        [
            (name, fit.num_points, output.percentage(fit.median_error), output.percentage(fit.p95_error),
             found.ffn[name].kernel)
            for name, fit in fits.items()
        ],
    )  # fmt: skip
    output.table(
        "links of a rank",
        ("link", "GB/s", "latency us", "source"),
        [(name, f"{link.gbps:.1f}", f"{1e6 * link.latency_s:.1f}", link.source) for name, link in links],
    )
    output.line(f"wrote {out}")
