"""Addresses of cameras and streams, shown without what is secret in them."""

import re

ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
ADDRESS_IN_TEXT = re.compile(rf"{ADDRESS.pattern}[^\s'\"<>]*", re.IGNORECASE)


def without_secrets(text: str) -> str:
    """An address without user, password and query; any other text as it is.

    A password that holds `/`, `?` or `#` as they are makes the address ambiguous: where a port
    stands that is no number, everything up to the last `@` is taken for the password.
    """
    scheme = ADDRESS.match(text)
    if not scheme:
        return text
    rest = text[scheme.end() :]
    place = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if re.search(r":(?!\d+$)[^\]]*$", place) and "@" not in place:
        rest = rest.rpartition("@")[2]
    else:
        rest = place.rpartition("@")[2] + rest[len(place) :]
    return scheme[0] + re.split(r"[?#]", rest, maxsplit=1)[0]


def word_without_secrets(word: str) -> str:
    """A word of a command, `rtsp://...` or `--input=rtsp://...`."""
    found = ADDRESS.search(word)
    return word[: found.start()] + without_secrets(word[found.start() :]) if found else word


def text_without_secrets(text: str) -> str:
    """A text of several words or lines, with every address in it."""
    return ADDRESS_IN_TEXT.sub(lambda found: without_secrets(found[0]), text)
