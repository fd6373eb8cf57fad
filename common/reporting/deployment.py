"""The sections about what may be shipped besides: smaller models, and other runtimes."""

from collections.abc import Mapping
from typing import Any

from common.reporting.blocks import (
    Block,
    Note,
    Section,
    Table,
    dig,
    interval,
    listed,
    map_change,
    number,
    percent,
    text,
)

Report = Mapping[str, Any]

PRUNING_COMMAND = "python phase4_deployment/pruning.py"
RUNTIMES_COMMAND = "python phase4_deployment/test_onnx.py"
PRUNING_COLUMNS = (
    *("Model", "Status", "mAP", "mAP change", "Speed-up (95%)", "Verdict", "p50 ms"),
    *("Zeros", "Weights fewer", "Size MiB", "Zipped MiB", "GFLOP"),
)


def runtimes_section(report: Report | None) -> Section:
    """`report` is onnx_test.json."""
    title = "The ONNX file in other runtimes"
    reading = (
        "The same file on the same images: a runtime is ok when it finds the boxes of the "
        "reference. The provider is what has really computed."
    )
    rows = listed(dig(report, "runtimes"))
    if not rows:
        return Section(title, reading, missing=RUNTIMES_COMMAND)
    table = tuple(
        (
            text(dig(row, "name")),
            text(dig(row, "provider")),
            text(dig(row, "version")),
            number(dig(row, "latency_ms", "p50"), 1),
            number(dig(row, "detections"), 0),
            percent(dig(row, "parity", "matched"), 1),
            text(dig(row, "status")),
            text(dig(row, "reason")),
        )
        for row in rows
    )
    columns = (
        *("Runtime", "Provider", "Version", "p50 ms", "Detections", "Same boxes"),
        *("Status", "Reason"),
    )
    return Section(title, reading, [Table(columns, table)])


def pruning_section(report: Report | None) -> Section:
    """`report` is pruning.json."""
    title = "Pruned models"
    reading = (
        "Zeros among the weights leave the tensors their shapes, and so, as a rule, the speed as "
        "it was; taking whole channels out makes the model smaller. Rejected are those that lose "
        "more mAP than allowed."
    )
    rows = listed(dig(report, "models"))
    if not rows:
        return Section(title, reading, missing=PRUNING_COMMAND)
    base = next((row for row in rows if row.get("name") == dig(report, "baseline")), None)
    blocks: list[Block] = [Table(PRUNING_COLUMNS, tuple(_pruned_row(row, base) for row in rows))]
    told = [f"{text(row.get('name'))} is {row['status']}" for row in rows if _is_told(row)]
    blocks += [Note(f"{'; '.join(told)}.")] if told else []
    conclusion = dig(report, "conclusion")
    sentences = conclusion if isinstance(conclusion, list) else []
    return Section(title, reading, [*blocks, *(Note(s) for s in sentences if isinstance(s, str))])


def _is_told(row: Report) -> bool:
    """Whether the status gives a reason, for which a cell has no room."""
    return ":" in str(row.get("status"))


def _pruned_row(row: Report, base: Report | None) -> tuple[str, ...]:
    is_base = row is base
    return (
        text(row.get("name")),
        text(row.get("status")).split(":")[0],
        number(row.get("map"), 4),
        "baseline" if is_base else map_change(row.get("map"), dig(base, "map")),
        "baseline" if is_base else interval(row.get("speedup")),
        text(row.get("verdict")),
        number(dig(row, "latency_ms", "p50"), 1),
        *(percent(row.get(key), 1) for key in ("zero_share", "removed_share")),
        *(number(row.get(key)) for key in ("size_mib", "size_zip_mib", "gflops")),
    )
