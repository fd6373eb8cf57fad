"""Where the numbers come from: machines, versions, commands, and whether they belong together."""

from collections.abc import Mapping
from typing import Any

from common.reporting.blocks import NOTHING, Block, Section, Table, dig, text

Report = Mapping[str, Any]
MODEL_SUFFIXES = (".pth", ".pt")


def summary(reports: Mapping[str, Report]) -> str:
    """The devices measured on and the newest time, for the line under the title."""
    if not reports:
        return "Nothing has been measured yet: each section names the command that does it."
    devices = dict.fromkeys(
        f"{text(dig(report, 'environment', 'device_name'))} "
        f"({text(dig(report, 'environment', 'device'))})"
        for report in reports.values()
        if dig(report, "environment", "device_name")
    )
    newest = max(time_of(report) for report in reports.values())
    return f"Measured on {', '.join(devices) or 'an unknown device'}; newest result {newest} UTC."


def time_of(report: Report) -> str:
    """When it was made, in UTC, to the second."""
    return text(dig(report, "created")).replace("T", " ").removesuffix("+00:00")


def models_used(reports: Mapping[str, Report]) -> dict[str, list[str]]:
    """sha256 of a model file -> the reports that were measured with it."""
    found: dict[str, list[str]] = {}
    for name, report in reports.items():
        inputs = dig(report, "inputs")
        for path, digest in inputs.items() if isinstance(inputs, Mapping) else ():
            if str(path).endswith(MODEL_SUFFIXES):
                found.setdefault(str(digest), []).append(name)
    return found


def notices(reports: Mapping[str, Report]) -> list[str]:
    """What a reader must know before comparing numbers of different sections."""
    found = []
    models = models_used(reports)
    if len(models) > 1:
        groups = "; ".join(", ".join(names) for names in models.values())
        found.append(
            f"These results belong to {len(models)} different models ({groups}): run the older "
            "steps again before comparing them."
        )
    devices = {text(dig(report, "environment", "device_name")) for report in reports.values()}
    devices.discard(NOTHING)
    if len(devices) > 1:
        found.append("Not everything was measured on the same device; the last section tells.")
    return found


def section(reports: Mapping[str, Report]) -> Section:
    title = "Where the numbers come from"
    reading = (
        "The command behind every section, the machine it ran on and the versions it used. A time "
        "holds for that machine only; run the command again on yours."
    )
    if not reports:
        return Section(title, reading, missing="make demo")
    runs = tuple(
        (
            name,
            text(dig(report, "command")),
            text(dig(report, "environment", "device")),
            time_of(report),
            text(dig(report, "environment", "git_commit")),
        )
        for name, report in reports.items()
    )
    blocks: list[Block] = [Table(("Result", "Command", "Device", "Created (UTC)", "Commit"), runs)]
    machines = dict.fromkeys(
        _machine(report) for report in reports.values() if dig(report, "environment")
    )
    columns = ("Machine", "Device", "Threads", "Python", "Platform", "Packages")
    blocks.append(Table(columns, tuple(machines)))
    return Section(title, reading, blocks)


def _machine(report: Report) -> tuple[str, ...]:
    facts = dig(report, "environment")
    packages = dig(facts, "packages")
    versions = packages.items() if isinstance(packages, Mapping) else ()
    return (
        text(dig(facts, "cpu")),
        text(dig(facts, "device_name")),
        f"{text(dig(facts, 'threads'))} of {text(dig(facts, 'cpu_count'))}",
        text(dig(facts, "python")),
        text(dig(facts, "platform")),
        ", ".join(f"{name} {version}" for name, version in versions),
    )
