"""Records the routing of a Hugging Face model while it answers prompts."""

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast, final

from eplb_traces.errors import InputError, MissingExtraError, naming_place
from eplb_traces.files.writers import check_trace_path
from eplb_traces.recorder.recorder import Recording, record

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

_PROMPT_KEYS = ("prompt", "text")


@final
@dataclass(frozen=True)
class Answering:
    """How the prompts are answered.

    Parameters
    ----------
    max_new_tokens
        Tokens to generate per prompt, greedily; 0: prefill only. The last generated token is never routed.
    batch_size
        Prompts per batch.
    device
        A torch device; None: the first GPU if there is one, otherwise the CPU.
    """

    max_new_tokens: int = 64
    batch_size: int = 8
    device: str | None = None

    def __post_init__(self) -> None:
        for name, value, least in (("max_new_tokens", self.max_new_tokens, 0), ("batch_size", self.batch_size, 1)):
            if value < least:
                raise InputError(f"{name} = {value}: expected at least {least}")


def read_prompts(path: str | Path) -> list[str]:
    """Read one prompt per line; in .jsonl, each line is a string or an object with ``prompt`` or ``text``.

    Raises
    ------
    InputError
        If the file has no prompt, or a line is invalid.
    """
    path = Path(path)
    with naming_place(path):
        try:
            # Not splitlines(): JSON strings may contain Unicode line separators.
            lines = path.read_text(encoding="utf-8").split("\n")
        except OSError as error:
            raise InputError(f"cannot be read: {error.strerror or error}") from error
        except UnicodeDecodeError as error:
            raise InputError(f"not a text: {error}") from error
        numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
        if not numbered:
            raise InputError("has no prompt")
        if path.suffix.lower() != ".jsonl":
            return [line for _, line in numbered]
        return [_prompt_of(number, line) for number, line in numbered]


def record_prompts(
    model_dir: str | Path,
    prompts: Sequence[str],
    path: str | Path,
    answering: Answering,
    done: Callable[[], None] = lambda: None,
) -> Recording:
    """Answer prompts with a model and record its routing to `path`; request n is the nth prompt.

    Nothing is downloaded, and no code from the model's folder is executed.

    Parameters
    ----------
    done
        Called after each prompt.

    Raises
    ------
    InputError
        If no trace can be written to `path`, the folder has no model with a tokenizer, the device does not exist, or
        the model cannot be recorded.
    MissingExtraError
        If transformers or torch is not installed.
    """
    check_trace_path(path)  # a large model takes minutes to load
    model, tokenizer = _loaded(Path(model_dir), answering.device)
    with record(model, path, end_tokens=_end_tokens(model)) as recording:
        for first in range(0, len(prompts), answering.batch_size):
            batch = list(prompts[first : first + answering.batch_size])
            _answer(model, tokenizer, batch, answering.max_new_tokens)
            for _ in batch:
                done()
    return recording


def _prompt_of(number: int, line: str) -> str:
    try:
        document = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"line {number}: not JSON: {error}") from error
    prompt = document
    if isinstance(document, dict):
        prompt = next((document[key] for key in _PROMPT_KEYS if key in document), None)
    if not isinstance(prompt, str) or not prompt:
        raise InputError(f"line {number}: expected a string, or an object with a string under 'prompt' or 'text'")
    return prompt


def _loaded(folder: Path, device: str | None) -> "tuple[nn.Module, PreTrainedTokenizerBase]":
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise MissingExtraError("recording a model", "record") from error
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder}: no config.json: expected the folder of a Hugging Face model")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, padding_side="left")
        model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype="auto")
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise InputError(f"{folder}: transformers cannot load it: {error}") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    name = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.nn.Module.to(model, torch.device(name)), tokenizer  # from_pretrained sets eval mode
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {name!r}: {error}") from error


def _end_tokens(model: "nn.Module") -> Collection[int]:
    ends: object = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if isinstance(ends, int):
        return [ends]
    return [end for end in ends if isinstance(end, int)] if isinstance(ends, list | tuple) else []


def _answer(model: "nn.Module", tokenizer: "PreTrainedTokenizerBase", prompts: list[str], max_new_tokens: int) -> None:
    import torch

    inputs = tokenizer(prompts, return_tensors="pt", padding=True, return_token_type_ids=False).to(
        next(model.parameters()).device
    )
    with torch.inference_mode():
        if max_new_tokens:
            generate = cast(Callable[..., object], model.generate)
            generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        else:
            model(**inputs)
