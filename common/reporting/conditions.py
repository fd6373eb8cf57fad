"""May two runs be compared? What differs in their machines, versions, data and settings."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from common.reporting.blocks import NOTHING, Section, Table, dig, text
from common.reporting.inputs import Inputs
from common.reporting.origin import MODEL_SUFFIXES, time_of

Report = Mapping[str, Any]

HARDWARE = ("device_name", "device", "cpu", "cpu_count", "threads")
# What the same numbers of two runs must have been measured with.
SETTINGS = (
    *("image_size", "evaluated_images", "val_images", "images", "batch_size", "confidence"),
    *("iou", "split", "architecture", "seed"),
)


def _hardware(report: Report) -> dict[str, str]:
    return {key: text(dig(report, "environment", key)) for key in HARDWARE}


def _versions(report: Report) -> dict[str, str]:
    packages = dig(report, "environment", "packages")
    told = packages if isinstance(packages, Mapping) else {}
    found = {"python": text(dig(report, "environment", "python"))}
    return found | {text(name): text(version) for name, version in told.items()}


def _data(report: Report) -> dict[str, str]:
    """Inputs but for models, which are what is compared."""
    inputs = dig(report, "inputs")
    pairs = inputs.items() if isinstance(inputs, Mapping) else ()
    return {Path(str(p)).name: text(sha) for p, sha in pairs if not str(p).endswith(MODEL_SUFFIXES)}


def _settings(report: Report) -> dict[str, str]:
    """Those of the recipe of a training, too."""
    recipe = dig(report, "recipe")
    told = dict(recipe) if isinstance(recipe, Mapping) else {}
    told |= {key: value for key in SETTINGS if (value := dig(report, key)) is not None}
    return {text(key): text(value) for key, value in told.items()}


PARTS: dict[str, Callable[[Report], Mapping[str, str]]] = {
    "Hardware differs": _hardware,
    "Versions differ": _versions,
    "Data differs": _data,
    "Settings differ": _settings,
}


def notices(first: Inputs, second: Inputs) -> list[str]:
    """A sentence for each part that differs in a result that both runs have."""
    found = []
    for words, reader in PARTS.items():
        differences: dict[str, list[str]] = {}
        for name, one, other in _common(first, second):
            for difference in _differences(reader(one), reader(other)):
                differences.setdefault(difference, []).append(name)
        if differences:
            told = "; ".join(f"{what} ({', '.join(where)})" for what, where in differences.items())
            found.append(f"{words} between A and B: {told}.")
    return found


def _common(first: Inputs, second: Inputs) -> Iterator[tuple[str, Report, Report]]:
    one, other = first.all(), second.all()
    for name, report in one.items():
        if name in other:
            yield name, report, other[name]


def _differences(first: Mapping[str, str], second: Mapping[str, str]) -> Iterator[str]:
    """Of what both tell; digests are cut, as nobody reads them."""
    for key, value in first.items():
        there = second.get(key, NOTHING)
        if NOTHING not in (value, there) and value != there:
            shown = (v if len(v) < 64 else v[:12] for v in (value, there))
            yield f"{key} " + " against ".join(shown)


def section(first: Inputs, second: Inputs) -> Section:
    """Each result of both runs: when it was made, with which command."""
    one, other = first.all(), second.all()
    rows = tuple(
        (
            name,
            which,
            time_of(reports[name]),
            text(dig(reports[name], "environment", "git_commit")),
            text(dig(reports[name], "command")),
        )
        for name in {**one, **other}
        for which, reports in (("A", one), ("B", other))
        if name in reports
    )
    reading = "When each result was made, and with which command."
    columns = ("Result", "Run", "Created (UTC)", "Commit", "Command")
    return Section("Where the numbers come from", reading, [Table(columns, rows)])
