"""Divides the columns of a table into blocks that fit the terminal, so that no word and no number is ever cut."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

_GAP = 2
"""Spaces between two columns."""
_LEAST_TEXT = 16
"""Columns of the terminal below which a text is not wrapped for the sake of another column."""


@final
@dataclass(frozen=True)
class Block:
    """Columns of a table that are printed side by side.

    Parameters
    ----------
    columns
        Their numbers.
    widths
        Columns of the terminal that each takes; a longer text is wrapped at its spaces.
    """

    columns: tuple[int, ...]
    widths: tuple[int, ...]


def blocks(
    headings: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[bool], num_keys: int, width: int
) -> list[Block]:
    """The columns in their order, the first `num_keys` again in each block.

    A number is never wrapped, a text and a heading only at spaces. A block is wider than the terminal only where its
    keys and one more column are.

    Parameters
    ----------
    headings, rows
        The texts of the table.
    numeric
        Which columns are numbers.
    num_keys
        Leading columns that name a row.
    width
        Columns of the terminal.
    """
    natural = [_widest([heading, *column]) for heading, column in _columns(headings, rows)]
    least = [
        max(_longest_word(heading), _widest(column)) if number else _least_of_text([heading, *column])
        for (heading, column), number in zip(_columns(headings, rows), numeric, strict=True)
    ]
    keys, found = list(range(num_keys)), []
    current = keys
    for column in range(num_keys, len(headings)):
        if current != keys and _total([*current, column], least) > width:
            found.append(current)
            current = keys
        current = [*current, column]
    return [_block(columns, natural, least, width) for columns in (*found, current)]


def _block(columns: Sequence[int], natural: Sequence[int], least: Sequence[int], width: int) -> Block:
    """The widest columns become narrower until all fit; they stay as they are where that is impossible."""
    widths = {column: natural[column] for column in columns}
    while _total(columns, widths) > width:
        wide = [column for column in columns if widths[column] > least[column]]
        if not wide:
            return Block(tuple(columns), tuple(natural[column] for column in columns))
        widths[max(wide, key=widths.__getitem__)] -= 1
    return Block(tuple(columns), tuple(widths[column] for column in columns))


def _total(columns: Sequence[int], widths: "Sequence[int] | dict[int, int]") -> int:
    return sum(widths[column] for column in columns) + _GAP * (len(columns) - 1)


def _columns(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[tuple[str, list[str]]]:
    return [(heading, [row[i] for row in rows]) for i, heading in enumerate(headings)]


def _least_of_text(texts: Sequence[str]) -> int:
    return max(min(_widest(texts), _LEAST_TEXT), *map(_longest_word, texts))


def _longest_word(text: str) -> int:
    return _widest(text.split())


def _widest(texts: Sequence[str]) -> int:
    from rich.cells import cell_len

    return max((cell_len(line) for text in texts for line in text.split("\n")), default=0)
