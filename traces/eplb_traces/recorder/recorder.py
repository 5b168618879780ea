"""Records what the routers of a running torch model choose: every token, layer and pass, as a trace.

    with record(model, "trace.parquet") as recording:
        model.generate(**tokenizer(prompts, return_tensors="pt", padding=True), max_new_tokens=64)

A pass costs two small kernels and one copy to the host that nobody waits for; a thread writes the file. How routers are
found is said in `recorder_routers`. Hooks see eager passes only: a compiled model or a replayed CUDA graph does not run
them, which ends with an error, not with a trace that misses something.
"""

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, final

import numpy as np

from eplb_traces.errors import InputError, MissingExtraError
from eplb_traces.files.parquet_file import import_pyarrow
from eplb_traces.files.writers import check_trace_path
from eplb_traces.model_shape import ModelShape
from eplb_traces.recorder.requests import RequestTracker, Rows, input_of, kept_tokens
from eplb_traces.recorder.routers import (
    ChoiceReader,
    Router,
    choice_reader,
    find_routers,
    named_routers,
    shape_of_model,
)
from eplb_traces.recorder.thread import RecordedPass, WriterThread

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

_IDS_PER_CHUNK = 1 << 20


@contextmanager
def record(
    model: "nn.Module",
    path: str | Path,
    *,
    routers: Mapping[int, str] | None = None,
    shape: ModelShape | None = None,
    end_tokens: Collection[int] = (),
) -> Iterator["Recording"]:
    """Record the routing of every forward pass of `model` inside the block.

    Step n is the nth pass. Every row of a batch is a request of its own, from 0 on; a pass that continues a key-value
    cache (any transformers `Cache`) continues the requests of its rows. Tokens that a 2-D ``attention_mask`` masks are
    left out.

    Parameters
    ----------
    model
        The module that is called: its forward takes ids [B, S], hidden states [B, S, H], or either without B.
    path
        The .parquet file; it appears at the end of the block, and not at all if the block raises.
    routers
        {absolute layer id: dotted name of the router}, for models in which they are not found.
    shape
        The model, where it has no Hugging Face configuration.
    end_tokens
        Ids that end a request: what `generate` feeds to such a row afterwards, while others go on, is left out.

    Raises
    ------
    InputError
        Before the block for a path that no trace can have; inside it if a pass cannot be recorded; at its end if there
        was none, or the file cannot be written.
    MissingExtraError
        If torch or pyarrow is not installed.
    """
    try:
        import torch  # noqa: F401  # only whether it is there
    except ImportError as error:
        raise MissingExtraError("recording a model", "record") from error
    import_pyarrow()
    check_trace_path(path)
    found = find_routers(model) if routers is None else named_routers(model, routers)
    known = shape_of_model(model, found, shape)
    writer = WriterThread(known, path)
    recording = Recording(model, found, writer, end_tokens)
    try:
        with recording.hooked():
            yield recording
        recording.flush()
    except BaseException:
        writer.abandon()
        raise
    writer.close()


@final
@dataclass(frozen=True, eq=False)
class _Pass:
    """A pass that is going on.

    Parameters
    ----------
    tokens
        [B, S] ids or [B, S, H] hidden states.
    kept
        [B * S]: True for tokens to record; None: all.
    cache
        The key-value cache it was given; None: none.
    chosen
        {position of the router: [B * S, K]}, filled as the routers run.
    """

    tokens: "Tensor"
    kept: "Tensor | None"
    rows: Rows
    cache: object
    chosen: dict[int, "Tensor"]


@final
class Recording:
    """A recording that goes on. `record` makes it; its properties are what a caller reads."""

    def __init__(
        self, model: "nn.Module", routers: tuple[Router, ...], writer: WriterThread, end_tokens: Collection[int]
    ) -> None:
        self._model = model
        self._routers = routers
        self._writer = writer
        self._tracker = RequestTracker(end_tokens)
        self._signature = inspect.signature(model.forward)
        self._current: _Pass | None = None
        self._waiting: list[RecordedPass] = []
        self._num_ids_waiting = 0
        self._num_steps = 0

    @property
    def shape(self) -> ModelShape:
        """The model as the trace will have it."""
        return self._writer.shape

    @property
    def num_steps(self) -> int:
        """Passes recorded so far."""
        return self._num_steps

    @property
    def num_requests(self) -> int:
        """Requests seen so far."""
        return self._tracker.num_requests

    @property
    def num_tokens(self) -> int:
        """Tokens that have reached the file so far; after the block, all of them."""
        return self._writer.num_tokens

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Listen to the model and its routers inside the block."""
        with ExitStack() as hooks:
            hooks.callback(self._model.register_forward_pre_hook(self._begin, with_kwargs=True).remove)
            hooks.callback(self._model.register_forward_hook(self._end).remove)
            for index, router in enumerate(self._routers):
                hooks.callback(router.module.register_forward_hook(self._hook_of(index, router)).remove)
            yield

    def flush(self) -> None:
        """Hand what has been recorded to the file's thread."""
        chunk, self._waiting, self._num_ids_waiting = self._waiting, [], 0
        if chunk:
            self._writer.put(chunk)

    def _hook_of(self, index: int, router: Router) -> "Callable[[nn.Module, object, object], None]":
        reader: ChoiceReader | None = None

        def on_choice(_module: "nn.Module", _inputs: object, output: object) -> None:
            nonlocal reader
            if self._current is None:
                raise InputError(
                    f"router {router.name} ran outside of the recorded model: record the one that is called"
                )
            if reader is None:
                reader = choice_reader(router, output, self.shape)
            self._current.chosen[index] = reader(output)

        return on_choice

    def _begin(self, _module: "nn.Module", inputs: tuple[object, ...], words: dict[str, object]) -> None:
        positional = {str(place): value for place, value in enumerate(inputs)}
        arguments = positional | self._signature.bind_partial(*inputs, **words).arguments | words
        tokens = input_of(arguments)
        cache = arguments.get("past_key_values")
        rows = self._tracker.rows(tokens, cache)
        kept = kept_tokens(arguments.get("attention_mask"), tokens, rows)
        self._current = _Pass(tokens, kept, rows, cache, {})

    def _end(self, _module: "nn.Module", _inputs: object, output: object) -> None:
        current, self._current = self._current, None
        if current is None:
            return
        made_cache = getattr(output, "past_key_values", None)
        self._tracker.remember(made_cache if current.cache is None else current.cache, current.rows)
        self._waiting.append(self._recorded(current))
        self._num_steps += 1
        self._num_ids_waiting += self._waiting[-1].ids.numel()
        if self._num_ids_waiting >= _IDS_PER_CHUNK:
            self.flush()

    def _recorded(self, current: _Pass) -> RecordedPass:
        """Put the choices of all layers together and start their way to the host."""
        import torch

        num_rows, length = current.tokens.shape[:2]
        for index, router in enumerate(self._routers):
            if index not in current.chosen:
                raise InputError(
                    f"router {router.name} did not run in pass {self._num_steps}: expected every router to"
                )
        choices = [current.chosen[index] for index in range(len(self._routers))]
        try:
            together = torch.stack(choices)
        except RuntimeError:  # of several devices or sizes; the usual pass does not look at each tensor
            together = torch.stack(self._alike(choices, num_rows * length))
        ids = together.reshape(len(choices), -1, together.shape[-1]).to(torch.int16)
        if ids.shape[1] != num_rows * length:
            raise InputError(f"every router chose for {ids.shape[1]} tokens: the pass has {num_rows} x {length}")
        kept = None if current.kept is None else _to_host(current.kept.to(ids.device))
        requests = np.repeat(current.rows.requests, length)
        return RecordedPass(self._num_steps, _to_host(ids), kept, requests, _arrival(ids.device))

    def _alike(self, choices: "Sequence[Tensor]", num_tokens: int) -> "list[Tensor]":
        """Bring choices to one device and to [T, K]."""
        alike = [ids.reshape(-1, ids.shape[-1]).to(choices[0].device) for ids in choices]
        for router, ids in zip(self._routers, alike, strict=True):
            if ids.shape != (num_tokens, self.shape.top_k):
                raise InputError(
                    f"router {router.name} gave {tuple(ids.shape)}: expected {num_tokens} tokens x {self.shape.top_k}"
                )
        return alike


def _to_host(tensor: "Tensor") -> "Tensor":
    """Start a copy to pinned memory and return where it will be; from other devices than CUDA's, wait for it."""
    import torch

    if tensor.device.type != "cuda":
        return tensor.cpu()
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


def _arrival(device: "torch.device") -> "torch.cuda.Event | None":
    """Mark the point in the device's work at which all copies so far are on the host."""
    import torch

    if device.type != "cuda":
        return None
    event: torch.cuda.Event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call, unused-ignore]
    event.record(torch.cuda.current_stream(device))
    return event
