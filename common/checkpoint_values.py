"""What may stand in a checkpoint beside its weights, looked at before a model is made of it.

A checkpoint may come from anywhere. Values that no training writes would build a model of any size,
give its classes the names of others, or fail in the midst of a run.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

MAX_SIDE = 1 << 20  # pixels of a resized image


def check_values(checkpoint: Mapping[str, Any]) -> None:
    """Raises KeyError for an entry that is missing, ValueError for one that cannot be."""
    for name, can_be in REQUIRED.items():
        if not can_be(checkpoint[name]):
            raise ValueError(f"{name} cannot be {checkpoint[name]!r:.60}")
    for name, can_be in OPTIONAL.items():
        if name in checkpoint and not can_be(checkpoint[name]):
            raise ValueError(f"{name} cannot be {checkpoint[name]!r:.60}")
    class_names, category_ids = checkpoint["class_names"], checkpoint["category_ids"]
    if not len(class_names) == len(category_ids) == checkpoint["num_classes"] - 1:
        raise ValueError("classes, names and category ids differ in number")
    for name, value in checkpoint["model_state_dict"].items():
        if _is_float(value) and not value.isfinite().all():
            raise ValueError(f"{name} holds values that are no finite numbers")


def _is_float(value: Any) -> bool:
    """Quantised weights are packed and have no such values."""
    return hasattr(value, "is_floating_point") and value.is_floating_point()


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return (_is_int(value) or isinstance(value, float)) and math.isfinite(value)


def _are(kind: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list | tuple) and all(map(kind, value))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _are_ids(value: Any) -> bool:
    return _are(_is_int)(value) and len(set(value)) == len(value)


def _is_side(value: Any) -> bool:
    return _is_int(value) and 1 <= value <= MAX_SIDE


def _is_anchor_size(value: Any) -> bool:
    return _is_number(value) and 0 < value <= MAX_SIDE


def _is_eps(value: Any) -> bool:
    return value is None or (_is_number(value) and 0 <= value < 1)


REQUIRED: dict[str, Callable[[Any], bool]] = {
    "architecture": _is_text,
    "num_classes": _is_int,
    "class_names": _are(_is_text),
    "category_ids": _are_ids,
    "min_size": _is_side,
    "max_size": _is_side,
    "model_state_dict": lambda value: isinstance(value, Mapping),
}
OPTIONAL: dict[str, Callable[[Any], bool]] = {
    "anchor_sizes": _are(_are(_is_anchor_size)),
    "frozen_norm_eps": _is_eps,
    "frozen": _are(_is_text),
}
