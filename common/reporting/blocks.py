"""What a report is made of: sections of tables, bars, lines and pictures, and how numbers read.

A block holds text as a person reads it. Escaping is the business of whoever renders it: the
template for HTML, `markdown` for Markdown.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

NOTHING = "–"  # where a value was not measured
# Columns of words: the others hold numbers and stand to the right.
WORD_COLUMNS = frozenset(
    (
        *("", "File", "Status", "Verdict", "sha256", "Command", "Objects by class", "Device"),
        *("Packages", "Stage", "Reason", "Image", "Truth", "Predicted", "Difference", "Found"),
        *("Split", "Provider", "Version", "Run", "Over the rung below"),
    )
)
SENTENCE_COLUMNS = frozenset(("Reason", "Command", "Packages"))  # kept wide on a narrow page


@dataclass(frozen=True)
class Table:
    """`rows` have one text per column; the first column names the row.

    `shades` colours cells: from 0 to 1 the deeper the better, from 0 to -1 the deeper the worse;
    the text alone says the same.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    shades: tuple[tuple[float, ...], ...] = ()
    kind: str = "table"


@dataclass(frozen=True)
class Bar:
    """One bar from `start` to `value`; `low` and `high` are the ends of its 95% interval, if it has
    one."""

    label: str
    value: float
    text: str
    low: float | None = None
    high: float | None = None
    state: str = ""  # "baseline", "loss" and "invalid" look different
    start: float = 0.0


@dataclass(frozen=True)
class Bars:
    """Horizontal bars on one scale from 0; `reference` draws a line there, for instance at 1."""

    title: str
    bars: tuple[Bar, ...]
    reference: float | None = None
    kind: str = "bars"

    @property
    def scale(self) -> float:
        ends = [end for bar in self.bars for end in (bar.start, bar.value, bar.high or 0.0)]
        return max([*ends, self.reference or 0.0, 1e-9])


@dataclass(frozen=True)
class Lines:
    """Series over x: a few values at equal distances, or, if `is_scale`, a scale from 0."""

    title: str
    x_label: str
    series: tuple[tuple[str, tuple[tuple[float, float], ...]], ...]
    y_max: float | None = None
    is_scale: bool = False
    kind: str = "lines"


@dataclass(frozen=True)
class Point:
    """One thing in a scatter chart."""

    label: str
    x: float
    y: float
    is_valid: bool = True


@dataclass(frozen=True)
class Scatter:
    """Numbered points; of the valid ones those that no other beats in both are joined."""

    title: str
    x_label: str
    y_label: str
    points: tuple[Point, ...]
    kind: str = "scatter"


@dataclass(frozen=True)
class Pictures:
    """Pictures side by side; `sources` are data URIs, so that the page stands alone."""

    sources: tuple[str, ...]
    caption: str
    is_wide: bool = False  # a chart whose words would be too small on a phone: it scrolls there
    kind: str = "pictures"


@dataclass(frozen=True)
class Note:
    """A sentence between two blocks."""

    text: str
    kind: str = "note"


Block = Table | Bars | Lines | Scatter | Pictures | Note


@dataclass(frozen=True)
class Section:
    """A heading, how to read what follows, and the blocks; or the command that would make them."""

    title: str
    reading: str
    blocks: Sequence[Block] = field(default_factory=tuple)
    missing: str | None = None  # the command


@dataclass(frozen=True)
class Card:
    """One headline number."""

    label: str
    value: str
    note: str


def pictures(sources: Sequence[str | None], caption: str, *, is_wide: bool = False) -> list[Block]:
    """The pictures that could be read, with a caption that is their alternative text, too."""
    found = tuple(source for source in sources if source)
    return [Pictures(found, caption, is_wide)] if found else []


# --- reading values that may be absent --------------------------------------------------------


def dig(content: Any, *keys: str | int) -> Any:
    """`content[a][b]...`, or None as soon as a level is absent."""
    for key in keys:
        if isinstance(content, Mapping):
            content = content.get(key)
        elif isinstance(content, list) and isinstance(key, int) and key < len(content):
            content = content[key]
        else:
            return None
    return content


def finite(value: Any) -> float | None:
    """The value as a float, or None when it is absent, not a number, NaN or infinite."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def number(value: Any, digits: int = 2, unit: str = "", sign: bool = False) -> str:
    """`number(3.14159, 1, "ms")` -> "3.1 ms"; what is no finite number reads "–"."""
    checked = finite(value)
    if checked is None:
        return NOTHING
    text = f"{checked:{'+' if sign else ''},.{digits}f}"
    return f"{text} {unit}" if unit else text


def percent(value: Any, digits: int = 0) -> str:
    checked = finite(value)
    return NOTHING if checked is None else f"{checked * 100:.{digits}f}%"


def interval(ratio: Any) -> str:
    """{"ratio": 1.5, "ci95": [1.4, 1.6]} -> "1.50x (1.40 to 1.60)"."""
    low, high = dig(ratio, "ci95", 0), dig(ratio, "ci95", 1)
    if finite(dig(ratio, "ratio")) is None:
        return NOTHING
    text = f"{number(dig(ratio, 'ratio'))}x"
    return text if finite(low) is None else f"{text} ({number(low)} to {number(high)})"


def text(value: Any) -> str:
    """The value as it is written; "–" for none, an empty one, and a number that is none."""
    absent = value is None or value == "" or (isinstance(value, float) and finite(value) is None)
    return NOTHING if absent else str(value)


def listed(value: Any) -> list[Mapping[str, Any]]:
    """The objects in a list; empty when it is no list."""
    return [entry for entry in value if isinstance(entry, Mapping)] if _is_list(value) else []


def sentences(value: Any) -> list[str]:
    """The texts in a list, or the one that stands alone."""
    return [each for each in (value if _is_list(value) else [value]) if isinstance(each, str)]


def reasons(rows: Sequence[Mapping[str, Any]], key: str = "name") -> list[Note]:
    """A sentence for each reason in the rows' `status`, naming all that share it."""
    names: dict[str, list[str]] = {}
    for row in rows:
        names.setdefault(text(row.get("status")), []).append(text(row.get(key)))
    return [
        Note(f"{', '.join(sharing)} {'is' if len(sharing) == 1 else 'are'} {why}.")
        for why, sharing in names.items()
        if ":" in why
    ]


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def map_change(found: Any, reference: Any) -> str:
    """How far mAP moved from that of the baseline, in points of 1."""
    first, second = finite(found), finite(reference)
    return NOTHING if first is None or second is None else number(first - second, 4, sign=True)


# --- Markdown ---------------------------------------------------------------------------------


def escape_markdown(words: str) -> str:
    """Text that shows as it is: no HTML, no formula, no link, no second table cell."""
    escaped = " ".join(words.split()).replace("&", "&amp;").replace("<", "&lt;")
    for character in "\\|$*`[":
        escaped = escaped.replace(character, "\\" + character)
    return escaped


def markdown(section: Section) -> str:
    """The section with its tables and notes; pictures and charts are left to the HTML page."""
    parts = [f"## {escape_markdown(section.title)}", escape_markdown(section.reading)]
    if section.missing:
        parts.append(f"Not measured yet. Make it with: `{section.missing}`")
    for block in section.blocks:
        if isinstance(block, Table):
            parts.append(_markdown_table(block))
        elif isinstance(block, Note):
            parts.append(escape_markdown(block.text))
    return "\n\n".join(part for part in parts if part)


def _markdown_table(table: Table) -> str:
    rule = ["---" if name in WORD_COLUMNS else "---:" for name in table.columns]
    head, *rows = ([escape_markdown(cell) for cell in row] for row in (table.columns, *table.rows))
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---", *rule[1:]], *rows))
