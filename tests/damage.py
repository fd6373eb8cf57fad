"""Files as a failing disk, a broken download or somebody's editor leaves them."""

import random
import re
from collections.abc import Callable
from pathlib import Path

from common.cli import UserError

Edit = Callable[[bytearray, int, int, random.Random], None]  # content, position, length


def _flip(content: bytearray, at: int, length: int, chance: random.Random) -> None:
    content[at] ^= 1 << chance.randrange(8)


def _replace(content: bytearray, at: int, length: int, chance: random.Random) -> None:
    content[at : at + length] = chance.randbytes(length)


def _digit(content: bytearray, at: int, length: int, chance: random.Random) -> None:
    """Text stays text."""
    content[at] = chance.choice(b'0123456789-+.eE,:;"[]{}\\\n nul')


def _blank(content: bytearray, at: int, length: int, chance: random.Random) -> None:
    content[at : at + length] = bytes(length)


def _leave_out(content: bytearray, at: int, length: int, chance: random.Random) -> None:
    del content[at : at + length]


def _repeat(content: bytearray, at: int, length: int, chance: random.Random) -> None:
    content[at:at] = content[at : at + length]


def _cut(content: bytearray, at: int, length: int, chance: random.Random) -> None:
    del content[at:]


EDITS: tuple[Edit, ...] = (_flip, _flip, _replace, _digit, _blank, _leave_out, _repeat, _cut)


def damaged(whole: bytes, seed: int) -> bytes:
    """`whole` with one or a few faults, the same for the same seed, and never as it was."""
    chance = random.Random(seed)
    content = bytearray(whole)
    while bytes(content) == whole or chance.random() < 0.2:
        if not content:
            break
        length = min(len(content), chance.choice((1, 2, 8, 64)))
        chance.choice(EDITS)(content, chance.randrange(len(content)), length, chance)
    return bytes(content)


NUMBER = re.compile(rb"-?\d+(\.\d+)?")
NUMBERS = (b"0", b"-1", b"1", b"2", b"3", b"5", b"7", b"12.5", b"40", b"1e9", b"1e400", b"NaN")


def damaged_text(whole: bytes, seed: int) -> bytes:
    """`damaged`, or with another number in the place of one: a file that may well be read."""
    chance = random.Random(seed)
    if chance.random() < 0.4:
        return damaged(whole, seed)
    place = chance.choice(list(NUMBER.finditer(whole)))
    others = [number for number in NUMBERS if number != place.group()]
    return whole[: place.start()] + chance.choice(others) + whole[place.end() :]


def assert_one_line_about(path: Path, error: UserError) -> None:
    assert str(error).startswith(str(path)), error
    assert "\n" not in str(error)
