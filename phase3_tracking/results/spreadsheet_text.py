"""CSV text that a spreadsheet shows as it was meant: names stay names, numbers stay numbers."""

import csv
import io
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
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")  # only then it also quotes a lone \r
    lines = []
    for row in rows:
        writer.writerow(row)
        lines.append(text.getvalue()[:-2])
        text.seek(0)
        text.truncate()
    return "".join(f"{line}\n" for line in lines)
