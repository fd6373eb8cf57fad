"""CSV text that a spreadsheet shows as it was meant: names stay names, numbers stay numbers."""

import csv
from collections.abc import Sequence

# What spreadsheets take for the start of a formula, full-width forms included, whatever the quotes.
FORMULA_STARTS = tuple("=+-@\t\r\n＝＋－＠")


def as_text(name: str) -> str:
    """A name that no spreadsheet computes: where it would, an apostrophe goes before it."""
    return f"'{name}" if name.startswith(FORMULA_STARTS) else name


def csv_lines(rows: Sequence[Sequence[object]]) -> str:
    """One line for each row (RFC 4180, with Unix line ends); fields are quoted where they need it.

    Args:
        rows: names have been through `as_text`; a number is written as `str` gives it, None as
            nothing.
    """
    lines = _Lines()
    csv.writer(lines, lineterminator="\r\n").writerows(rows)  # only then it also quotes a lone \r
    return "".join(f"{line[:-2]}\n" for line in lines)


class _Lines(list[str]):
    """A file in which every row that `csv` writes is an element."""

    write = list.append
