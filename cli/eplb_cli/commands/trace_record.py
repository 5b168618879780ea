"""`eplb trace record`: what the routers of a Hugging Face model do while it answers prompts."""

from pathlib import Path
from typing import Annotated

import typer

from eplb_cli import output
from eplb_cli.arguments.options import JsonOpt


def record(  # noqa: PLR0913  # one parameter a word of the command line
    model_dir: Annotated[
        Path, typer.Argument(metavar="MODEL_DIR", help="Folder of a Hugging Face MoE model.", show_default=False)
    ],
    prompts_path: Annotated[
        Path,
        typer.Argument(
            metavar="PROMPTS",
            help="One prompt a line, or a .jsonl with 'prompt' or 'text' in each line.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path, typer.Option("--output", "-o", metavar="OUT", help="The trace, a .parquet.", show_default=False)
    ],
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", metavar="N", help="Tokens to generate for each prompt; 0: none.")
    ] = 64,
    batch_size: Annotated[int, typer.Option("--batch-size", metavar="B", help="Prompts of a batch.")] = 8,
    device: Annotated[
        str | None,
        typer.Option("--device", metavar="D", help="A torch device.", show_default="cuda if there is one, else cpu"),
    ] = None,
    as_json: JsonOpt = False,
) -> None:
    """Record which experts each token of PROMPTS and of the answers chose; request n is the nth prompt."""
    from eplb_traces.recorder.prompts import Answering, read_prompts, record_prompts

    answering = Answering(max_new_tokens, batch_size, device)
    prompts = read_prompts(prompts_path)
    with output.progress("recording", total=len(prompts)) as done:
        recording = record_prompts(model_dir, prompts, out, answering, done)
    if as_json:
        counts = {"requests": recording.num_requests, "steps": recording.num_steps, "tokens": recording.num_tokens}
        output.json_object({"written": {"path": str(out), "kind": "token-level trace"}, **counts})
        return
    output.line(f"wrote {out}")
    requests, steps = output.counted(recording.num_requests, "request"), output.counted(recording.num_steps, "step")
    output.line(f"  {output.counted(recording.num_tokens, 'token')} of {requests} in {steps}")
