"""Random batches of several ranks, executed by virtual ranks of one process, and the sum they must equal."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from eplb.errors import EplbError
from eplb.runtime.exchange.symmetric.memory import memory_in_process
from eplb.runtime.exchange.symmetric.region import RegionShape
from eplb.runtime.exchange.symmetric.settings import KernelSettings, Phase
from eplb.runtime.exchange.symmetric.state import ExchangeLayout, RankState

SMALL = KernelSettings(pushers=2, placers=3, combiners=4)


@dataclass(frozen=True)
class Batch:
    """Tokens of P ranks: integers, so that sums are exact."""

    first_slot: tuple[int, ...]
    x: list[torch.Tensor]
    slots: list[torch.Tensor]
    weights: list[torch.Tensor]
    scale: torch.Tensor
    """[slots] factor of the expert in each slot."""

    def expected_rows(self, rank: int, capacity: int) -> list[tuple[int, int, int]]:
        """(slot, copy, token) of every row of a rank, sorted by slot, copy and choice, by a loop."""
        low, high = self.first_slot[rank : rank + 2]
        rows = [
            (slot, source * capacity + token, k, token)
            for source, slots in enumerate(self.slots)
            for token, chosen in enumerate(slots.tolist())
            for k, slot in enumerate(chosen)
            if low <= slot < high
        ]
        return [(slot, copy, token) for slot, copy, _, token in sorted(rows)]

    def expected(self, rank: int) -> torch.Tensor:
        """[T, H] float64 result of a rank's tokens."""
        factor_TK = torch.where(self.slots[rank] >= 0, self.scale[self.slots[rank].clamp(min=0)], 0.0)
        return self.x[rank].double() * (factor_TK * self.weights[rank]).double().sum(dim=1, keepdim=True)


def make_batch(seed, tokens, *, top_k=3, hidden=20, slots=(3, 2, 4, 1), masked=0.2, dtype=torch.float32) -> Batch:
    """`tokens` of each rank; every token chooses different slots, some are masked."""
    rng = np.random.default_rng(seed)
    first_slot = (0, *np.cumsum(slots[: len(tokens)]).tolist())
    chosen = [
        np.stack([rng.permutation(first_slot[-1])[:top_k] for _ in range(max(count, 1))])[:count] for count in tokens
    ]
    hide = [rng.random(one.shape) < masked for one in chosen]
    return Batch(
        first_slot,
        [torch.from_numpy(rng.integers(-4, 5, (count, hidden))).to(dtype) for count in tokens],
        [torch.from_numpy(np.where(gone, -1, one)) for one, gone in zip(chosen, hide, strict=True)],
        [torch.from_numpy(rng.integers(0, 9, one.shape) / 8).float() for one in chosen],
        torch.from_numpy(rng.integers(-3, 4, first_slot[-1])).float(),
    )


def make_states(batch: Batch, capacity, *, steps_before=0, device="cpu", fixed_order=False, **words):
    """One state for each rank, in regions that are poisoned; epochs may start near their wrap."""
    shape = RegionShape(
        len(batch.x), capacity, batch.slots[0].shape[1], batch.x[0].shape[1], batch.x[0].element_size(), fixed_order
    )
    memories = memory_in_process(shape.num_ranks, shape.num_bytes, device)
    states = [RankState.create(memory, shape, batch.first_slot, **words) for memory in memories]
    for state in states:
        state.poison()
        state.epochs.fill_(steps_before)
        state.part("counters").view(torch.int32).fill_((steps_before * capacity + 2**31) % 2**32 - 2**31)
        for part in ("choices_flags", "dispatch_flags", "combine_flags"):
            state.part(part).view(torch.int32).fill_(steps_before)
    return states


def laid_out(states, batch: Batch) -> list[ExchangeLayout]:
    """The layout of every rank."""
    from eplb.runtime.kernels.normal_mode import make_layout, publish_choices

    layouts = [ExchangeLayout.allocate(state, slots) for state, slots in zip(states, batch.slots, strict=True)]
    for state, layout, x, weights in zip(states, layouts, batch.x, batch.weights, strict=True):
        layout.num_tokens.fill_(len(x))
        publish_choices(state, layout, weights, torch.tensor([7]))
    for state, layout in zip(states, layouts, strict=True):
        make_layout(state, layout)
    return layouts


def dispatched(states, layouts, batch: Batch, settings=SMALL) -> list[torch.Tensor]:
    """The rows of every rank, in a buffer of NaN."""
    from eplb.runtime.kernels.normal_mode import dispatch_rows

    rows = [torch.full((state.max_rows, batch.x[0].shape[1]), float("nan"), dtype=batch.x[0].dtype) for state in states]
    for phase in (Phase.SEND, Phase.RECEIVE):
        for state, layout, x, out in zip(states, layouts, batch.x, rows, strict=True):
            dispatch_rows(state, layout, settings, x, out, phase)
    return rows


def low_latency_dispatched(states, batch: Batch):
    """Layouts and rows of every rank; the layout kernels of the normal mode do not run."""
    from eplb.runtime.kernels.low_latency import dispatch_low_latency

    layouts = [ExchangeLayout.allocate(state, slots) for state, slots in zip(states, batch.slots, strict=True)]
    rows = [torch.full((state.max_rows, batch.x[0].shape[1]), float("nan"), dtype=batch.x[0].dtype) for state in states]
    for phase in (Phase.SEND, Phase.RECEIVE):
        for state, layout, weights, x, out in zip(states, layouts, batch.weights, batch.x, rows, strict=True):
            layout.num_tokens.fill_(len(x))
            dispatch_low_latency(state, layout, weights, torch.tensor([7]), x, out, settings=SMALL, phase=phase)
    for state, layout in zip(states, layouts, strict=True):
        own = state.first_slot[state.rank], state.first_slot[state.rank + 1]
        ids = state.part("ids").view(torch.int32).view(2, *layout.row_CK.shape)[(int(state.epochs[1]) - 1) & 1]
        layout.local_slot_CK.copy_(torch.where((ids >= own[0]) & (ids < own[1]), ids - own[0], -1))
    return layouts, rows


def low_latency_combined(states, layouts, rows) -> list[torch.Tensor]:
    """The result of every rank for rows that the experts have computed."""
    from eplb.runtime.kernels.low_latency import combine_low_latency

    results = [torch.full((len(layout.slot_TK), rows[0].shape[1]), -99.0, dtype=rows[0].dtype) for layout in layouts]
    for phase in (Phase.SEND, Phase.RECEIVE):
        for state, layout, y, out in zip(states, layouts, rows, results, strict=True):
            combine_low_latency(state, layout, SMALL, y, out, phase)
    return results


def combined(states, layouts, rows, settings=SMALL) -> list[torch.Tensor]:
    """The result of every rank for rows that the experts have computed."""
    from eplb.runtime.kernels.normal_mode import combine_rows

    results = [torch.full((len(layout.slot_TK), rows[0].shape[1]), -99.0, dtype=rows[0].dtype) for layout in layouts]
    for phase in (Phase.SEND, Phase.RECEIVE):
        for state, layout, y, out in zip(states, layouts, rows, results, strict=True):
            combine_rows(state, layout, settings, y, out, phase)
    return results


def pulled(_, argument) -> list[str]:
    """What differs from the sums of all ranks, in two steps and for a rank that never announces its own."""
    batch, wrong = make_batch(5, [4, 0, 17], hidden=20), []
    states = make_states(batch, 17, timeout_s=0.05)
    layouts = [ExchangeLayout.allocate(state, slots) for state, slots in zip(states, batch.slots, strict=True)]
    hit_T = torch.arange(17) % 8
    for layout, x in zip(layouts, batch.x, strict=True):
        layout.num_tokens.fill_(len(x))
        layout.hit_T.copy_(hit_T)
    for step, silent in enumerate(((), (), (1,))):
        sums = torch.randint(-9, 10, (3, 3, 17, 20)).float()  # rank of the experts, rank of the token
        for state in states:
            state.part("stage").view(torch.float32).view(2, 3, 17, 20)[step % 2] = sums[state.rank]
        outs = _pulled_once(states, layouts, batch, silent)
        for rank, out in enumerate(outs):
            expected = (sums[:, rank] * (hit_T >> torch.arange(3)[:, None] & 1)[..., None]).sum(dim=0)[: len(out)]
            right = out.isnan().all() if silent and rank not in silent else torch.equal(out, expected)
            wrong += [] if right else [f"step {step}, rank {rank}"]
    return [*wrong, str(_raised(states[0]))]


def _pulled_once(states, layouts, batch: Batch, silent) -> list[torch.Tensor]:
    from eplb.runtime.kernels.pull import pull_sums

    outs = [torch.full((len(x), 20), -99.0) for x in batch.x]
    for phase in (Phase.SEND, Phase.RECEIVE):
        for state, layout, out in zip(states, layouts, outs, strict=True):
            if phase is Phase.RECEIVE or state.rank not in silent:
                pull_sums(state, layout, out, 2, phase)
    return outs


def _raised(state) -> str:
    try:
        state.raise_on_error()
    except EplbError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def computed(state, layout, rows, batch: Batch) -> torch.Tensor:
    """Rows times the factor of their expert; unused rows stay NaN."""
    ends = layout.offs_S.tolist()
    y = torch.full_like(rows, float("nan"))
    for slot, (first, end) in enumerate(zip([0, *ends], ends, strict=False)):
        y[first:end] = rows[first:end] * batch.scale[state.first_slot[state.rank] + slot].to(rows.dtype)
    return y


SHAPES = {
    "two ranks": ({"tokens": [5, 9]}, 12, {}),
    "a rank without tokens, epochs that wrap": ({"tokens": [0, 3, 7]}, 9, {"steps_before": 2**31 - 2}),
    "bf16, four ranks, two blocks": (
        {"tokens": [1, 0, 34, 2], "dtype": torch.bfloat16, "hidden": 130, "top_k": 2},
        34,
        {},
    ),
    "four ranks": ({"tokens": [1, 0, 5, 2], "hidden": 130}, 5, {}),
    "fixed order": ({"tokens": [4, 6, 1], "dtype": torch.bfloat16}, 7, {"fixed_order": True}),
    "all masked": ({"tokens": [2, 3], "masked": 1.0}, 3, {}),
    "one choice": ({"tokens": [4, 2], "top_k": 1, "hidden": 1}, 4, {}),
}


TWO_BLOCKS = "bf16, four ranks, two blocks"


def wrong_steps(_, argument) -> list[str]:
    """What differs from the plain loop in three steps of each named shape, in one of the two modes."""
    wrong = []
    names, low_latency = argument
    for name in names:
        words, capacity, changes = SHAPES[name]
        batch = make_batch(len(name), **words)
        states = make_states(batch, capacity, **changes)
        for step in range(3):
            if low_latency:
                layouts, rows = low_latency_dispatched(states, batch)
            else:
                layouts = laid_out(states, batch)
                rows = dispatched(states, layouts, batch)
            y = [computed(*parts, batch) for parts in zip(states, layouts, rows, strict=True)]
            results = (low_latency_combined if low_latency else combined)(states, layouts, y)
            for state, layout, row, result in zip(states, layouts, rows, results, strict=True):
                where = f"{name}, step {step}, rank {state.rank}"
                expected = batch.expected_rows(state.rank, capacity)
                wrong += [f"{where}: {text}" for text in wrong_layout(state, layout, expected)]
                tokens = [batch.x[copy // capacity][token] for _, copy, token in expected]
                if tokens and not torch.equal(row[: len(tokens)], torch.stack(tokens)):
                    wrong.append(f"{where}: rows")
                if not row[len(tokens) :].isnan().all():
                    wrong.append(f"{where}: a row behind the last was written")
                if not torch.equal(result.double(), batch.expected(state.rank).to(result.dtype).double()):
                    wrong.append(f"{where}: result")
                state.raise_on_error()
    return wrong


def wrong_layout(state, layout, expected) -> list[str]:
    """What differs between a layout and the sorted rows of a rank."""
    row_CK = layout.row_CK
    copy, k = (row_CK >= 0).nonzero(as_tuple=True)
    order = row_CK[copy, k].argsort()
    slots = layout.local_slot_CK[copy, k][order] + state.first_slot[state.rank]
    found = list(zip(slots.tolist(), copy[order].tolist(), strict=True))
    wrong = [] if found == [(slot, copy) for slot, copy, _ in expected] else ["layout"]
    counts = np.bincount([slot for slot, _, _ in expected], minlength=state.first_slot[-1])
    ends = np.cumsum(counts[state.first_slot[state.rank] : state.first_slot[state.rank + 1]])
    return wrong if layout.offs_S.tolist() == ends.tolist() else [*wrong, "offs"]


def float8_rows(_, argument) -> list[str]:
    """Rows that travelled as e4m3 equal the rows rounded in torch, own ones too.

    The values are multiples of 64 times a power of two for each 128 channels, with 448 as the largest: the interpreter
    does not round to float8 as the GPU does, so nothing is left to round.
    """
    rng = np.random.default_rng(0)
    batch = make_batch(3, [5, 6], hidden=256, masked=0.0)
    x = [64 * rng.integers(-4, 5, (len(one), 2, 128)) for one in batch.x]
    for one in x:
        one[:, :, 5] = 448
    powers = [2.0 ** rng.integers(-9, 9, (len(one), 2, 1)) for one in x]
    batch = replace(
        batch, x=[torch.from_numpy(a * b).float().view(len(a), 256) for a, b in zip(x, powers, strict=True)]
    )
    batch.x[0][0] = 0
    states = make_states(batch, 8)
    layouts = laid_out(states, batch)
    rows = dispatched(states, layouts, batch, replace(SMALL, float8_wire=True, push_columns=128))
    wrong = []
    for state, row in zip(states, rows, strict=True):
        for number, (_, copy, token) in enumerate(batch.expected_rows(state.rank, 8)):
            if not torch.equal(row[number], rounded_to_float8(batch.x[copy // 8][token])):
                wrong.append(f"rank {state.rank}, row {number}")
    return wrong


def rounded_to_float8(x: torch.Tensor) -> torch.Tensor:
    """Rows to e4m3 and back, with one scale for each 128 channels."""
    groups = x.float().unflatten(-1, (-1, 128))
    largest = groups.abs().amax(dim=-1, keepdim=True).clamp(min=1e-10)
    value = (groups * (448.0 / largest)).to(torch.float8_e4m3fn).float()
    return (value * (largest * (1.0 / 448.0))).flatten(-2).to(x.dtype)


def failures(_, argument) -> dict[str, list[str]]:
    """The exception that every rank raises, by what went wrong."""
    outcomes = {}
    batch = make_batch(1, [4, 5])

    states = make_states(batch, 6, max_rows=4)
    laid_out(states, batch)
    outcomes["rows"] = [_raised(state) for state in states]
    states = make_states(batch, 4)
    laid_out(states, batch)
    outcomes["tokens"] = [_raised(state) for state in states]
    states = make_states(batch, 6)
    slots = [batch.slots[0], batch.slots[1].clone()]
    slots[1][0, 0] = batch.first_slot[-1]
    laid_out(states, replace(batch, slots=slots))
    outcomes["slot"] = [_raised(state) for state in states]
    for name, lost in (("dispatch", _lost_dispatch), ("combine", _lost_combine)):
        states = make_states(batch, 6, timeout_s=0.05)
        result = lost(states, laid_out(states, batch), batch)
        outcomes[name] = [_raised(state) for state in states]
        outcomes[f"{name} result"] = [str(bool(result.isnan().all()))]
    return outcomes


def _lost_dispatch(states, layouts, batch):
    """Rank 0 does not send; rank 1 waits for it, and combine gives NaN afterwards. The result of rank 1."""
    from eplb.runtime.kernels.normal_mode import dispatch_rows

    rows = torch.full((states[1].max_rows, batch.x[1].shape[1]), float("nan"))
    dispatch_rows(states[1], layouts[1], SMALL, batch.x[1], rows, Phase.SEND)
    dispatch_rows(states[1], layouts[1], SMALL, batch.x[1], rows, Phase.RECEIVE)
    zeros = [torch.zeros((state.max_rows, batch.x[0].shape[1])) for state in states]
    return combined(states, layouts, zeros)[1]


def _lost_combine(states, layouts, batch):
    """Rank 1 does not return its sums. The result of rank 0."""
    from eplb.runtime.kernels.normal_mode import combine_rows

    y = torch.zeros((states[0].max_rows, batch.x[0].shape[1]))
    out = torch.zeros_like(batch.x[0])
    for phase in (Phase.SEND, Phase.RECEIVE):
        combine_rows(states[0], layouts[0], SMALL, y, out, phase)
    return out
