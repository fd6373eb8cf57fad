"""What two runs are compared by: the quantities of each kind of report, of both runs."""

from collections.abc import Iterator, Mapping
from typing import Any

from common.reporting.blocks import dig, text
from common.reporting.difference import (
    Quantity,
    Value,
    by_name,
    of_ratio,
    of_rounds,
    of_seeds,
    single,
)
from common.reporting.speed import rows_of

Pair = tuple[Any, Any]  # the same part of the reports of both runs
Keys = tuple[str, ...]
LOWER = "lower"


def _values(
    pair: Pair, keys: Mapping[str, Keys], digits: int = 3, better: str = "higher"
) -> list[Quantity]:
    """Values without an interval, by the name they are shown with."""
    return [
        Quantity(name, single(pair[0], *path), single(pair[1], *path), better, digits)
        for name, path in keys.items()
    ]


def _rows(pair: Pair, list_key: str, key: str = "name") -> Iterator[tuple[str, Pair]]:
    """Rows of a list that both reports have, by name."""
    first, second = (by_name(dig(report, list_key), key) for report in pair)
    for name in first:
        if name in second:
            yield name, (first[name], second[name])


def _ratio(name: str, pair: Pair, noises: Pair) -> Quantity:
    """Of {"ratio": …, "ci95": …} and the noise of both runs."""
    return Quantity(name, of_ratio(pair[0], noises[0]), of_ratio(pair[1], noises[1]), digits=2)


def _size(name: str, rows: Pair) -> Quantity:
    first, second = (single(row, "size_mib") for row in rows)
    return Quantity(name, first, second, LOWER, digits=2, is_exact=True)


def _part(pair: Pair, *keys: str) -> Pair:
    return dig(pair[0], *keys), dig(pair[1], *keys)


def training(pair: Pair) -> list[Quantity]:
    means = {"mAP": "map", "mAP at IoU 0.50": "map_50", "mAP at IoU 0.75": "map_75"}
    costs = {"Training, s": ("training_s",), "Peak memory, MiB": ("peak_memory_mib",)}
    return [
        *_values(pair, {name: ("best", key) for name, key in means.items()}),
        *_values(pair, {"Images/s": ("images_per_s",)}, 1),
        *_values(pair, costs, 0, LOWER),
    ]


def evaluation(pair: Pair) -> list[Quantity]:
    found = _values(pair, {"mAP": ("map",), "mAP at IoU 0.50": ("map_50",)})
    for name, rows in _rows(pair, "classes"):
        keys = {"AP": "ap", "precision": "precision", "recall": "recall"}
        found += _values(rows, {f"{name}: {word}": (key,) for word, key in keys.items()})
    kinds = {"Missed objects": "missed", "False alarms": "false_alarm", "Wrong class": "confusion"}
    counts = {words: ("errors", kind, "count") for words, kind in kinds.items()}
    return found + _values(pair, counts, 0, LOWER)


def profile(pair: Pair) -> list[Quantity]:
    found = []
    for name, parts in (("training", pair), ("inference", _part(pair, "inference"))):
        step = f"One {name} step"
        speedups = _part(parts, "stock", "speedup")
        found += _values(parts, {f"{step}, ms": ("free_step_ms", "p50")}, 1, LOWER)
        found.append(_ratio(f"{step}, speed-up", speedups, _part(speedups, "noise")))
        found += _values(pair, {f"{step}, peak MiB": ("memory", name, "peak_mib")}, 1, LOWER)
    return found


def benchmark(pair: Pair) -> list[Quantity]:
    """Variants and batch sizes that both have."""
    first, second = (
        {(row["variant"], row["batch_size"]): row for row in rows_of(report)} for report in pair
    )
    found = []
    for name, size in (key for key in first if key in second):
        rows, at = (first[name, size], second[name, size]), f"{name}, batch {text(size)}"
        if name != dig(pair[0], "baseline"):
            noises = _part(pair, "noise", str(size))
            found.append(_ratio(f"{at}: speed-up", _part(rows, "speedup"), noises))
        found += _values(rows, {f"{at}: p50 ms": ("latency_ms", "p50")}, 1, LOWER)
        found += _values(rows, {f"{at}: mAP": ("map",)}, 4)
    return found


def amp(pair: Pair) -> list[Quantity]:
    found = []
    for name, arms in _rows(pair, "arms"):
        noises = _part(arms, "speedup", "noise")
        first, second = (_step_ms(arm, noise) for arm, noise in zip(arms, noises, strict=True))
        found.append(Quantity(f"{name}: step ms", first, second, LOWER, digits=1))
        found.append(_ratio(f"{name}: speed-up", _part(arms, "speedup"), noises))
        first, second = (of_seeds(dig(arm, "over_seeds", "map")) for arm in arms)
        found.append(Quantity(f"{name}: mAP", first, second))
    return found


def _step_ms(arm: Any, noise: Any) -> Value:
    return of_rounds(dig(arm, "step_times_ms"), noise) or single(arm, "step_ms", "p50")


def tracking(pair: Pair) -> list[Quantity]:
    shares = {"IDF1": "idf1", "MOTA": "mota", "HOTA": "hota", "DetA": "deta", "AssA": "assa"}
    counts = {"Identity switches": "id_switches", "False boxes": "fp", "Missed boxes": "fn"}
    return [
        *_values(pair, {name: ("combined", key) for name, key in shares.items()}),
        *_values(pair, {name: ("combined", key) for name, key in counts.items()}, 0, LOWER),
    ]


def formats(pair: Pair) -> list[Quantity]:
    found = []
    for name, rows in _rows(pair, "formats"):
        found.append(_size(f"{name}: MiB", rows))
        found += _values(rows, {f"{name}: p50 ms": ("latency_ms", "p50")}, 1, LOWER)
        found.append(_ratio(f"{name}: speed-up", _part(rows, "speedup"), (None, None)))
        found += _values(rows, {f"{name}: mAP": ("map",)}, 4)
    return found


def pruning(pair: Pair) -> list[Quantity]:
    found = []
    for name, rows in _rows(pair, "models"):
        found.append(_size(f"{name}: MiB", rows))
        found.append(_ratio(f"{name}: speed-up", _part(rows, "speedup"), _part(pair, "noise")))
        found += _values(rows, {f"{name}: mAP": ("map",)}, 4)
    return found


def videos(pair: Pair) -> list[Quantity]:
    """Videos of the same name, of reports by name."""
    found = []
    for name in (name for name in pair[0] if name in pair[1]):
        found += _values(pair, {f"{name}: frames/s": (name, "fps_end_to_end")}, 1)
    return found
