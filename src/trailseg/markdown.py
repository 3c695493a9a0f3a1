"""Markdown: tables, and escaping of plain text."""

import re
from collections.abc import Container, Iterable, Sequence


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, left: Container[str]) -> str:
    """A table of cells that are Markdown; columns whose heads are in `left` begin at the left, others end at the right.

    >>> print(table(["class", "IoU %"], [["sky", "93.8"]], left=["class"]))
    | class | IoU % |
    | --- | ---: |
    | sky | 93.8 |
    """
    rules = ["---" if head in left else "---:" for head in heads]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, rules, *rows))


def escape(text: str) -> str:
    r"""`text` as plain words of one cell.

    >>> print(escape("grass|weed"))
    grass\|weed
    """
    return re.sub(r"([\\`*_\[\]<>|&#])", r"\\\1", " ".join(text.split()))
