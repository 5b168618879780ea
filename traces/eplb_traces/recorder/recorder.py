"""Records the expert choices of a running torch model as a trace: every token, layer and pass.

    with record(model, "trace.parquet") as recording:
        model.generate(**tokenizer(prompts, return_tensors="pt", padding=True), max_new_tokens=64)

A pass costs two small kernels and one asynchronous copy to the host; a thread writes the file. `recorder.routers` finds
the routers. Hooks run in eager passes only; a compiled model or a replayed CUDA graph does not run them, and recording
ends with an error instead of an incomplete trace.
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
from eplb_traces.recorder.caches import (
    FoundCache,
    check_made_in_pass,
    check_no_earlier_tokens,
    find_cache,
    returned_caches,
)
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

    Step n is the nth pass. Every row of a batch is one request, numbered from 0; a pass that continues a key-value
    cache (any transformers `Cache`, under any argument name) continues the requests of its rows. A pass with earlier
    tokens whose cache cannot be found is an error. Tokens masked by a 2-D ``attention_mask`` are omitted.

    Parameters
    ----------
    model
        The module that is called; its forward takes ids [B, S] or hidden states [B, S, H], or either without B.
    path
        The .parquet file; written at the end of the block, and not if the block raises.
    routers
        {absolute layer id: dotted name of the router}, for models in which routers are not found automatically.
    shape
        The shape of the model, if it has no Hugging Face configuration.
    end_tokens
        Token ids that end a request; tokens that `generate` feeds to the row afterwards are omitted.

    Raises
    ------
    InputError
        Before the block if the path is invalid; inside it if a pass cannot be recorded; at its end if there was no pass
        or the file cannot be written.
    MissingExtraError
        If torch or pyarrow is not installed.
    """
    try:
        import torch  # noqa: F401  # only to check that it is installed
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
    """A running pass.

    Parameters
    ----------
    tokens
        [B, S] ids or [B, S, H] hidden states.
    kept
        [B * S]: True for tokens to record; None: all.
    cache
        The key-value cache of the pass; None: none.
    chosen
        {position of the router: [B * S, K]}, filled as the routers run.
    """

    tokens: "Tensor"
    kept: "Tensor | None"
    rows: Rows
    cache: FoundCache | None
    chosen: dict[int, "Tensor"]


@final
class Recording:
    """A running recording, created by `record`."""

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
        """The shape of the model, as stored in the trace."""
        return self._writer.shape

    @property
    def num_steps(self) -> int:
        """Passes recorded so far."""
        return self._num_steps

    @property
    def num_requests(self) -> int:
        """Requests recorded so far."""
        return self._tracker.num_requests

    @property
    def num_tokens(self) -> int:
        """Tokens written so far; all of them after the block."""
        return self._writer.num_tokens

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Register hooks on the model and its routers inside the block."""
        with ExitStack() as hooks:
            hooks.callback(self._model.register_forward_pre_hook(self._begin, with_kwargs=True).remove)
            hooks.callback(self._model.register_forward_hook(self._end).remove)
            for index, router in enumerate(self._routers):
                hooks.callback(router.module.register_forward_hook(self._hook_of(index, router)).remove)
            yield

    def flush(self) -> None:
        """Pass the recorded passes to the writer thread."""
        chunk, self._waiting, self._num_ids_waiting = self._waiting, [], 0
        if chunk:
            self._writer.put(chunk)

    def _hook_of(self, index: int, router: Router) -> "Callable[[nn.Module, object, object], None]":
        reader: ChoiceReader | None = None

        def on_choice(_module: "nn.Module", _inputs: object, output: object) -> None:
            nonlocal reader
            if self._current is None:
                raise InputError(
                    f"router {router.name} ran outside the recorded model: expected the model that is called"
                )
            if reader is None:
                reader = choice_reader(router, output, self.shape)
            self._current.chosen[index] = reader(output)

        return on_choice

    def _begin(self, _module: "nn.Module", inputs: tuple[object, ...], words: dict[str, object]) -> None:
        arguments = self._named(inputs, words)
        tokens = input_of(arguments)
        cache = find_cache(arguments)
        rows = self._tracker.rows(tokens, cache)
        kept = kept_tokens(arguments.get("attention_mask"), tokens, rows)
        if cache is None or cache.length == 0:
            check_no_earlier_tokens(arguments, tokens.shape[1])
        self._current = _Pass(tokens, kept, rows, cache, {})

    def _named(self, inputs: tuple[object, ...], words: dict[str, object]) -> dict[str, object]:
        """Arguments by place, then by name in the order of the signature; `words` may have names that it lacks."""
        by_place = {str(place): value for place, value in enumerate(inputs)}
        in_order = {name: words[name] for name in self._signature.parameters if name in words}
        return by_place | self._signature.bind_partial(*inputs).arguments | in_order | words

    def _end(self, _module: "nn.Module", _inputs: object, output: object) -> None:
        current, self._current = self._current, None
        if current is None:
            return
        caches = returned_caches(output)
        if current.cache is None:
            check_made_in_pass(caches, current.tokens.shape[1])
        else:
            caches = (*caches, current.cache.identity)
        self._tracker.remember(caches, current.rows)
        self._waiting.append(self._recorded(current))
        self._num_steps += 1
        self._num_ids_waiting += self._waiting[-1].ids.numel()
        if self._num_ids_waiting >= _IDS_PER_CHUNK:
            self.flush()

    def _recorded(self, current: _Pass) -> RecordedPass:
        """Stack the choices of all layers and start their copy to the host."""
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
        except RuntimeError:  # several devices or sizes; the common case avoids a check of every tensor
            together = torch.stack(self._aligned(choices, num_rows * length))
        ids = together.reshape(len(choices), -1, together.shape[-1]).to(torch.int16)
        if ids.shape[1] != num_rows * length:
            raise InputError(f"every router chose for {ids.shape[1]} tokens: the pass has {num_rows} x {length}")
        kept = None if current.kept is None else _to_host(current.kept.to(ids.device))
        requests = np.repeat(current.rows.requests, length)
        return RecordedPass(self._num_steps, _to_host(ids), kept, requests, _arrival(ids.device))

    def _aligned(self, choices: "Sequence[Tensor]", num_tokens: int) -> "list[Tensor]":
        """Move choices to one device and reshape them to [T, K]."""
        aligned = [ids.reshape(-1, ids.shape[-1]).to(choices[0].device) for ids in choices]
        for router, ids in zip(self._routers, aligned, strict=True):
            if ids.shape != (num_tokens, self.shape.top_k):
                raise InputError(
                    f"router {router.name} gave {tuple(ids.shape)}: expected {num_tokens} tokens x {self.shape.top_k}"
                )
        return aligned


def _to_host(tensor: "Tensor") -> "Tensor":
    """Start an asynchronous copy to pinned memory; for devices other than CUDA, copy synchronously."""
    import torch

    if tensor.device.type != "cuda":
        return tensor.cpu()
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


def _arrival(device: "torch.device") -> "torch.cuda.Event | None":
    """Record an event that is reached when all copies so far are on the host; None for other devices than CUDA."""
    import torch

    if device.type != "cuda":
        return None
    event: torch.cuda.Event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call, unused-ignore]
    event.record(torch.cuda.current_stream(device))
    return event
