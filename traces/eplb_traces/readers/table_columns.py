"""Decides by its header which of the known forms a table has, and what each column is."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import final

from eplb_traces.errors import InputError
from eplb_traces.model_shape import id_ranges

FORMS = (
    "layer, expert, tokens (a row for each pair; optional window or step, rank), "
    "layer, expert_0, expert_1, .. (a row for each layer, counts), or "
    "token, layer, expert_0, .. (a row for each token and layer, expert ids)"
)
_UNNAMED = re.compile(r"|index|unnamed:_\d+|__index_level_\d+__")

_LAYER_ID = ("layer", "layer_id", "layer_idx", "layer_index", "layer_number", "layer_num", "layerid", "moe_layer_id")
_LAYER_POSITION = ("moe_layer", "moe_layer_idx", "moe_layer_index")
_LAYER_NAME = ("layer_name", "name", "module", "module_name", "gate", "router")
_EXPERT = ("logical_expert_id", "logical_expert", "expert", "expert_id", "expert_idx", "expert_index", "expertid")
_TOKENS = ("tokens", "count", "counts", "token_count", "tokens_count", "token_counts", "num_tokens", "n_tokens", "hits")
_WEAK_TOKENS = ("load", "hotness", "freq", "frequency", "activations", "activation_count", "expert_load")
_WINDOW = ("window", "window_id", "window_idx")
_STEP = ("step", "step_id", "step_idx", "iteration", "iter", "forward_pass_id", "forward_pass")
_RANK = ("rank", "rank_id", "ep_rank", "dp_rank", "gpu", "gpu_id", "device", "device_id")
_TOKEN = ("token_idx", "token_index", "position", "pos", "token_pos", "token", "tok", "token_id")
_REQUEST = ("request", "request_id", "req_id", "req", "rid", "sequence", "seq", "seq_id", "sequence_id")
_CHOICES = (
    *("topk_ids", "topk_experts", "topk_indices", "topk_idx", "topk", "topk_expert_ids", "top_k_experts"),
    *("experts", "expert_ids", "expert_indices", "selected_experts", "routed_experts"),
    *_EXPERT,
)
_TOTALS = ("total", "sum", "mean", "avg", "average", "max", "min", "std", "median", "all", "total_tokens")

_EXPERT_COLUMN = re.compile(
    r"((?:logical_)?(?:routed_)?(?:experts?|exp|e)?[_.\[#]*)(\d{1,9})(\]?(?:_(?:counts?|tokens|load|hits))?)"
)
_CHOICE_COLUMN = re.compile(
    r"((?:experts?|exp|e|top_?k?|k|choice|(?:expert|topk)_(?:ids?|idx)|id)[_.\[#]*)(\d{1,9})(\]?)"
)
_LAYER_IN_PATH = re.compile(r"(?:layers?|blk|block|h)[._ \[]*(\d+)")
_NO_LAYER = re.compile(r"exp(?:ert)?s?\b|exp(?:ert)?s?[_.\[# -]*\d|rank|token|group|step|window|gpu|slot|node")
_LONGEST_HEADER = 12
_LONGEST_NAME = 80
_MOST_DIGITS = 10


class Form(StrEnum):
    """What a row of a table is."""

    PAIR = "long form"
    LAYER = "wide form"
    EXPERT = "wide form, transposed"
    TOKEN = "token form"


@final
@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which column of a table is what, by index; None: not there.

    Parameters
    ----------
    form
        What a row is.
    layer, expert, tokens, window, step, rank, token, request
        Single columns.
    values
        The columns of the wide form in the order of experts (of layers where transposed), the choices of a token.
    value_ids
        Numbers in the names of `values`.
    are_positions
        The layer column counts rows or MoE layers: its values are absolute ids only if they are not 0 to L - 1.
    are_moe_layers
        The header names the rows MoE layers: one without a token is neither dense nor missing.
    is_named
        The header names layers or experts; False where a column of values is known by its number alone.
    left_out
        Names of the columns without a meaning here.
    """

    form: Form
    layer: int | None = None
    expert: int | None = None
    tokens: int | None = None
    window: int | None = None
    step: int | None = None
    rank: int | None = None
    token: int | None = None
    request: int | None = None
    values: tuple[int, ...] = ()
    value_ids: tuple[int, ...] = ()
    are_positions: bool = False
    are_moe_layers: bool = False
    is_named: bool = True
    left_out: tuple[str, ...] = ()


def normal(name: str) -> str:
    """A name as the lists of this module have it."""
    return re.sub(r"[ \-]", "_", name.strip().lower())


def layer_number(text: str) -> int | None:
    """The layer in `3`, `layer_3` or `model.layers.3.mlp.gate`; None where no number, or more than one, could be it.

    `expert_3` and `rank3` are no layers.
    """
    in_path = _LAYER_IN_PATH.findall(text.lower())
    if not in_path and _NO_LAYER.search(text.lower()):
        return None
    numbers = in_path if len(in_path) == 1 else re.findall(r"\d+", text)
    return int(numbers[0]) if len(numbers) == 1 and len(numbers[0]) < _MOST_DIGITS else None


def understand(header: Sequence[str], num_experts: int | None = None) -> Columns:
    """Find the form of a table with this header.

    Parameters
    ----------
    header
        [columns] names as written.
    num_experts
        E, if the caller gave it: only then may columns be numbered from 1.

    Raises
    ------
    InputError
        Showing the header, if it is of none of the known forms.
    """
    names = [normal(name) for name in header]
    _check_no_repetition(header, names)
    has_layer = any(name in (*_LAYER_ID, *_LAYER_POSITION, *_LAYER_NAME) for name in names)
    if has_layer and _find(names, _EXPERT) is not None and _tokens(header, names) is not None:
        return _pairs(header, names)
    if has_layer and _find(names, _TOKEN) is not None:
        return _tokens_and_layers(header, names)
    if _find(names, _EXPERT) is not None and not has_layer:
        return _rows_of_experts(header, names)
    return _rows_of_layers(header, names, num_experts)


def unknown_header(header: Sequence[str], why: str = "") -> InputError:
    """The refusal that shows the header and the known forms."""
    shown = ", ".join(repr(name) if not name.strip() else name[:_LONGEST_NAME] for name in header[:_LONGEST_HEADER])
    more = f", .. ({len(header)} columns)" if len(header) > _LONGEST_HEADER else ""
    return InputError(f"header {shown}{more}: {why}expected {FORMS}")


def _pairs(header: Sequence[str], names: list[str]) -> Columns:
    window, step = _time(header, names)
    layer = _layer(names)
    found = Columns(
        form=Form.PAIR,
        layer=layer,
        expert=_find(names, _EXPERT),
        tokens=_tokens(header, names),
        window=window,
        step=step,
        rank=_find(names, _RANK),
        are_positions=layer is not None and names[layer] in _LAYER_POSITION,
        are_moe_layers=layer is not None and names[layer] in _LAYER_POSITION,
    )
    return _with_left_out(found, header)


def _tokens_and_layers(header: Sequence[str], names: list[str]) -> Columns:
    columns = _numbered(header, names, _CHOICE_COLUMN)
    in_one = _find(names, _CHOICES)
    if not columns and in_one is None:
        raise unknown_header(header, "a row is a token, but no column has its experts: ")
    ids = tuple(sorted(columns)) or (0,)
    first = ids[0]
    if first > 1 or ids != tuple(range(first, first + len(ids))):
        raise InputError(f"the choices of a token are numbered {id_ranges(ids)}: expected 0, 1, .. without a gap")
    layer = _layer(names)
    found = Columns(
        form=Form.TOKEN,
        layer=layer,
        step=_find(names, _STEP),
        token=_find(names, _TOKEN),
        request=_find(names, _REQUEST),
        values=tuple(columns[i] for i in ids) if columns else (required(in_one),),
        value_ids=ids,
        are_positions=layer is not None and names[layer] in _LAYER_POSITION,
        are_moe_layers=layer is not None and names[layer] in _LAYER_POSITION,
    )
    return _with_left_out(found, header)


def _rows_of_experts(header: Sequence[str], names: list[str]) -> Columns:
    expert = required(_find(names, _EXPERT))
    columns: dict[int, int] = {}
    for i, name in enumerate(names):
        number = layer_number(name) if name.isdigit() or _LAYER_IN_PATH.search(name) else None
        if number is None:
            continue
        if number in columns:
            raise unknown_header(header, f"two columns are layer {number}: ")
        columns[number] = i
    _refuse_totals(header, names)
    if not columns:
        raise unknown_header(header, "rows are experts, but no column is a layer: ")
    ids = tuple(sorted(columns))
    found = Columns(form=Form.EXPERT, expert=expert, values=tuple(columns[i] for i in ids), value_ids=ids)
    return _with_left_out(found, header)


def _rows_of_layers(header: Sequence[str], names: list[str], num_experts: int | None) -> Columns:
    columns = _numbered(header, names, _EXPERT_COLUMN)
    window, step = _time(header, names)
    _refuse_totals(header, names)
    if not columns:
        raise unknown_header(header)
    ids = tuple(sorted(columns))
    first = 1 if ids[0] == 1 and num_experts == len(ids) else 0
    if ids != tuple(range(first, first + len(ids))):
        from_one = ids == tuple(range(1, len(ids) + 1))
        hint = f"; if experts are counted from 1, give num_experts (--num-experts {len(ids)})" if from_one else ""
        raise InputError(f"the columns of experts are {id_ranges(ids)}: expected 0, 1, .. without a gap{hint}")
    layer = _layer(names)
    unnamed = next((i for i, name in enumerate(names) if _UNNAMED.fullmatch(name)), None)
    by_number = names[columns[ids[0]]].isdigit()
    if layer is None and len(columns) + (unnamed is not None) < len(names):
        raise unknown_header(header, "no column has the layer: ")
    found = Columns(
        form=Form.LAYER,
        layer=unnamed if layer is None else layer,
        window=window,
        step=step,
        rank=_find(names, _RANK),
        values=tuple(columns[i] for i in ids),
        value_ids=ids,
        are_positions=layer is None or names[layer] in _LAYER_POSITION,
        are_moe_layers=layer is not None and names[layer] in _LAYER_POSITION,
        is_named=layer is not None or not by_number,
    )
    return _with_left_out(found, header)


def _numbered(header: Sequence[str], names: list[str], pattern: re.Pattern[str]) -> dict[int, int]:
    """{number: column} of the columns that differ in a number alone."""
    columns: dict[int, int] = {}
    stems: dict[tuple[str, str], str] = {}
    for i, name in enumerate(names):
        match = pattern.fullmatch(name)
        if not match:
            continue
        stems.setdefault((match[1], match[3]), header[i])
        if int(match[2]) in columns:
            raise unknown_header(header, f"columns {header[columns[int(match[2])]]} and {header[i]} are one: ")
        columns[int(match[2])] = i
    if len(stems) > 1:
        raise unknown_header(header, f"columns {' and '.join(list(stems.values())[:2])} could both be experts: ")
    return columns


def _layer(names: list[str]) -> int | None:
    return _find(names, (*_LAYER_ID, *_LAYER_POSITION, *_LAYER_NAME))


def _tokens(header: Sequence[str], names: list[str]) -> int | None:
    for words in (_TOKENS, _WEAK_TOKENS):
        found = [i for i, name in enumerate(names) if name in words]
        if len(found) > 1:
            raise unknown_header(header, f"columns {' and '.join(header[i] for i in found)} could both be the tokens: ")
        if found:
            return found[0]
    return None


def _time(header: Sequence[str], names: list[str]) -> tuple[int | None, int | None]:
    found = [i for i, name in enumerate(names) if name in (*_WINDOW, *_STEP)]
    if len(found) > 1:
        raise unknown_header(header, f"columns {' and '.join(header[i] for i in found)} could both be the window: ")
    if not found:
        return None, None
    return (found[0], None) if names[found[0]] in _WINDOW else (None, found[0])


def _refuse_totals(header: Sequence[str], names: list[str]) -> None:
    column = _find(names, _TOTALS)
    if column is not None:
        raise InputError(
            f"column {column + 1} is {header[column]!r}, which is no expert: remove it, the columns of experts alone "
            "are counted"
        )


def _check_no_repetition(header: Sequence[str], names: list[str]) -> None:
    for i, name in enumerate(names):
        if name and name in names[:i]:
            raise unknown_header(header, f"column {header[i]} is there twice: ")


def _find(names: Sequence[str], words: Sequence[str]) -> int | None:
    """The column with the first of some names that is there."""
    return next((names.index(word) for word in words if word in names), None)


def required(column: int | None) -> int:
    """The column, or InputError where the table has none."""
    if column is None:
        raise InputError("a column is missing")
    return column


def _with_left_out(found: Columns, header: Sequence[str]) -> Columns:
    single = (found.layer, found.expert, found.tokens, found.window, found.step, found.rank, found.token, found.request)
    used = {*single, *found.values}
    left_out = tuple(name.strip() or f"{i + 1} (without a name)" for i, name in enumerate(header) if i not in used)
    return replace(found, left_out=left_out)
