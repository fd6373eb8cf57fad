"""Ids that an exporter wrote as text."""

import re
from typing import Any

from common.coco_table import INTEGER_KEYS, with_integers

DIGITS = re.compile(r"([0-9]{1,18})(\.0)?")  # 7.0 is what a table of floats makes of an id


def with_numeric_ids(content: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Reads digits in the place of a whole number, such as the image_id "397133".

    Returns:
        The content, of which other entries are the same objects; and one line for each list of
        the file that changed.
    """
    numbered = with_integers(content, str, _number)
    lines = []
    for name in INTEGER_KEYS:
        if numbered.get(name) is not content.get(name):
            pairs = zip(numbered[name], content[name], strict=True)
            changed = sum(new is not old for new, old in pairs)
            if changed:
                lines.append(f"numbers of {changed} {name} were text and are numbers now")
    return numbered, lines


def _number(text: str) -> int | None:
    digits = DIGITS.fullmatch(text)
    return int(digits[1]) if digits else None
