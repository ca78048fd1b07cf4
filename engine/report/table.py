"""Plain tables of a report."""

from collections.abc import Sequence
from html import escape
from typing import NamedTuple


class Cell(NamedTuple):
    text: str
    is_number: bool = False
    html: bool = False
    """The text is markup already."""


def table(heads: Sequence[tuple[str, bool]], rows: Sequence[Sequence[Cell]]) -> str:
    """`heads`: (name, whether numbers stand below)."""
    head = "".join(f"<th{' class=n' if numbers else ''}>{escape(name)}</th>" for name, numbers in heads)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(cell: Cell) -> str:
    text = cell.text if cell.html else escape(cell.text)
    return f"<td{' class=n' if cell.is_number else ''}>{text}</td>"
