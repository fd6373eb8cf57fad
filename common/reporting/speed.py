"""The sections about time: where it goes, what each speed-up buys and costs, batch size, AMP."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.reporting import charts
from common.reporting.blocks import (
    NOTHING,
    Bar,
    Bars,
    Block,
    Card,
    Lines,
    Note,
    Point,
    Scatter,
    Section,
    Table,
    dig,
    finite,
    interval,
    listed,
    map_change,
    number,
    percent,
    pictures,
    reasons,
    sentences,
    text,
)

Report = Mapping[str, Any]
Row = Mapping[str, Any]

PROFILE_COMMAND = "python phase2_optimization/gpu_profiler.py"
BENCHMARK_COMMAND = "python phase2_optimization/benchmark_inference.py"
AMP_COMMAND = "python phase2_optimization/mixed_precision.py"
MAX_BARS = 12


def profile_section(report: Report | None) -> Section:
    title = "Where the time goes"
    reading = (
        "Each bar is one stage of a step and its share of the step's time. The longest bar is "
        "what a speed-up has to shorten; halving a short one changes little."
    )
    if report is None:
        return Section(title, reading, missing=PROFILE_COMMAND)
    blocks: list[Block] = []
    for name, part in (("training", report), ("inference", dig(report, "inference"))):
        bars = tuple(
            Bar(
                text(dig(stage, "name")),
                finite(dig(stage, "share")) or 0.0,
                f"{number(dig(stage, 'ms'), 1, 'ms')}, {percent(dig(stage, 'share'))}",
            )
            for stage in listed(dig(part, "stages"))[:MAX_BARS]
        )
        if bars:
            batch, precision = text(dig(report, "batch_size")), dig(part, "precision")
            told = f", {text(precision)}" if precision else ""
            blocks.append(Bars(f"One {name} step, batch size {batch}{told}", bars))
    blocks += [Note(f"Advice: {words}") for words in sentences(dig(report, "advice"))]
    return Section(title, reading, [*blocks, *_warnings(report)])


def _warnings(report: Report) -> list[Note]:
    """What the run itself said against its times."""
    return [Note(f"Warning: {words}") for words in sentences(dig(report, "warnings"))]


def memory_section(report: Report | None, metrics: Path) -> Section:
    """`report` is profile.json, with its picture in `metrics`."""
    title = "Memory in the course of a step"
    reading = (
        "Whoever runs out of memory has to shorten the peak: a smaller batch lowers all of it, "
        "half precision most of the forward pass, and recomputing what the backward pass needs "
        "trades time for it."
    )
    told = dig(report, "memory")
    if not isinstance(told, Mapping) or not told:
        return Section(title, reading, missing=PROFILE_COMMAND)
    rows = tuple(
        (text(name), number(dig(step, "peak_mib"), 1), text(dig(step, "peak_stage")))
        for name, step in told.items()
    )
    caption = "Memory over one step of each kind; the bands are its stages, the mark is the peak."
    shown = pictures([charts.picture(metrics / "profile_memory.png")], caption, is_wide=True)
    return Section(title, reading, [Table(("Step", "Peak MiB", "Stage"), rows), *shown])


# --- inference benchmark ----------------------------------------------------------------------


def rows_of(report: Report | None) -> list[Row]:
    """The rows that say what they are of."""
    rows = listed(dig(report, "results"))
    named = [row for row in rows if row.get("variant") and isinstance(row["variant"], str)]
    return [row for row in named if finite(row.get("batch_size"))]


def measured(report: Report | None) -> list[Row]:
    """The rows that have a time."""
    return [row for row in rows_of(report) if finite(dig(row, "latency_ms", "p50"))]


def shown_batch_size(report: Report) -> Any:
    """The batch size the speed-ups are shown at: the best one, where it was measured."""
    sizes = [row["batch_size"] for row in measured(report)]
    best = dig(report, "optimal_batch_size")
    return best if best in sizes else (sizes[0] if sizes else None)


def _is_faster(row: Row) -> bool:
    """What the benchmark concluded; from the interval alone where it concluded nothing."""
    verdict = row.get("verdict")
    return verdict == "faster" or (
        not verdict and (finite(dig(row, "speedup", "ci95", 0)) or 0) > 1
    )


def fastest(report: Report | None) -> Row | None:
    """The fastest variant whose results hold, if it beats the baseline."""
    if report is None:
        return None
    rows = [
        row
        for row in measured(report)
        if row.get("batch_size") == shown_batch_size(report)
        and row.get("status") == "ok"
        and _is_faster(row)
    ]
    named = [row for row in rows if row.get("variant") == dig(report, "fastest_variant")]
    return max(
        named or rows, key=lambda row: finite(dig(row, "speedup", "ratio")) or 0, default=None
    )


def baseline_of(report: Report, batch_size: Any) -> Row | None:
    """The baseline's row at this batch size, if it has a time."""
    wanted = (dig(report, "baseline"), batch_size)
    rows = measured(report)
    return next((r for r in rows if (r.get("variant"), r.get("batch_size")) == wanted), None)


def speed_card(report: Report | None) -> Card | None:
    if report is None or not measured(report):
        return None
    row = fastest(report)
    if row is None:
        return Card("Inference speed-up", "none", "no variant was shown to be faster than FP32")
    change = map_change(dig(row, "map"), dig(baseline_of(report, row["batch_size"]), "map"))
    low, high = dig(row, "speedup", "ci95", 0), dig(row, "speedup", "ci95", 1)
    cost = "" if change == NOTHING else f", mAP {change}"
    return Card(
        "Inference speed-up",
        f"{number(row['speedup']['ratio'])}x",
        f"{row['variant'].replace('_', ' ')} at batch size {row['batch_size']}; "
        f"95% interval {number(low)} to {number(high)}{cost}",
    )


def _gain(row: Row, above: Row | None, baseline: Row | None) -> tuple[str, ...]:
    return (
        text(dig(row, "variant")),
        *(number(dig(row, "latency_ms", key), 1) for key in ("p50", "p90", "p99")),
        number(dig(row, "throughput_img_s"), 1),
        "baseline" if row is baseline else interval(dig(row, "speedup")),
        _step(dig(row, "step"), dig(above, "variant")),
        _verdict(row),
    )


def _step(step: Any, above: str | None) -> str:
    """What the technique alone has bought, over which rung if not the one above in the table, and
    the verdict where that is not told."""
    ratio, verdict, over = interval(step), dig(step, "verdict"), dig(step, "over")
    if ratio == NOTHING:
        return ratio
    named = f" over {text(over)}" if over and over != above else ""
    untold = f", {verdict}" if verdict not in (None, "faster", "slower") else ""
    return f"{ratio}{named}{untold}"


def _verdict(row: Row) -> str:
    """Whether it is faster where its results hold, else what is wrong with them, in a word."""
    status = text(row.get("status"))
    return text(row.get("verdict") or status) if status == "ok" else status.split(":")[0]


def _is_told_by_its_reason(row: Row) -> bool:
    """Whether it has no time, so that a row would be dashes only, and a sentence says why."""
    return finite(dig(row, "latency_ms", "p50")) is None and ":" in text(row.get("status"))


def _cost(row: Row, baseline: Row | None) -> tuple[str, ...]:
    change = map_change(dig(row, "map"), dig(baseline, "map"))
    return (
        text(dig(row, "variant")),
        number(dig(row, "map"), 4),
        "baseline" if row is baseline else change,
        percent(dig(row, "parity", "matched"), 1),
        number(dig(row, "parity", "max_box_error_px")),
        number(dig(row, "peak_memory_mib"), 0),
    )


GAIN_COLUMNS = (
    *("What it buys", "p50 ms", "p90 ms", "p99 ms", "Images/s"),
    *("Speed-up (95% interval)", "Over the rung below", "Verdict"),
)
COST_COLUMNS = (
    *("What it costs", "mAP", "mAP change", "Boxes that stayed", "Largest shift px"),
    "Peak memory MiB",
)


def waterfall(rows: Sequence[Row], baseline: Row | None) -> tuple[Bar, ...]:
    """Times as fast as the baseline: a bar begins where that of the rung it adds to ends."""
    ratios = {text(row.get("variant")): finite(dig(row, "speedup", "ratio")) for row in rows}
    bars = []
    for row in rows:
        name = text(row.get("variant"))
        if (end := ratios[name]) is None:
            continue
        start = ratios.get(text(dig(row, "step", "over"))) or 0.0
        is_valid = row.get("status") == "ok"
        state = "loss" if end < start else ""
        state = "baseline" if row is baseline else (state if is_valid else "invalid")
        words = f"{number(end)}x" + ("" if is_valid else " (invalid)")
        low, high = (finite(dig(row, "speedup", "ci95", bound)) for bound in (0, 1))
        bars.append(Bar(name, end, words, low, high, state, start))
    return tuple(bars)


def pareto(rows: Sequence[Row], title: str) -> list[Block]:
    """Speed against accuracy, where both were measured of two variants or more."""
    points = tuple(
        Point(text(row.get("variant")), speed, accuracy, row.get("status") == "ok")
        for row in rows
        if (speed := finite(dig(row, "throughput_img_s"))) is not None
        and (accuracy := finite(dig(row, "map"))) is not None
    )
    return [Scatter(title, "images per second", "mAP", points)] if len(points) > 1 else []


def speedup_section(report: Report | None) -> Section:
    title = "What each speed-up buys and costs"
    reading = (
        "A bar begins where the technique it adds to ends: blue is what it gains, orange what it "
        "loses. What ends right of the line at 1 is faster than the plain FP32 model; the thin "
        "mark is the 95% interval: where it touches the line, no difference was shown. The verdict "
        "asks for more: the interval must lie further from 1 than two runs of the same model "
        "differ. The cost: how far mAP moved and what share of the boxes stayed the same. In the "
        "chart of mAP over speed a line joins those that no other beats in both."
    )
    if report is None or not measured(report):
        return Section(title, reading, missing=BENCHMARK_COMMAND)
    batch_size = shown_batch_size(report)
    rows = [row for row in rows_of(report) if row.get("batch_size") == batch_size]
    baseline = baseline_of(report, batch_size)
    bars = waterfall(rows, baseline)
    blocks: list[Block] = []
    if bars:
        blocks.append(Bars(f"Speed-up at batch size {batch_size}", bars, reference=1.0))
    blocks += pareto(rows, f"mAP over images per second, batch size {batch_size}")
    shown = [row for row in rows if not _is_told_by_its_reason(row)]
    gains = (_gain(row, above, baseline) for above, row in zip([None, *shown], shown, strict=False))
    blocks.append(Table(GAIN_COLUMNS, tuple(gains)))
    blocks.append(Table(COST_COLUMNS, tuple(_cost(row, baseline) for row in shown)))
    blocks += [*reasons(rows, "variant"), *_warnings(report)]
    if conclusion := dig(report, "conclusion"):
        blocks.append(Note(str(conclusion)))
    if dig(report, "complete") is False:
        blocks.append(Note("The benchmark was stopped before its end: some rows are missing."))
    return Section(title, reading, blocks)


def _series(rows: Sequence[Row], *keys: str) -> tuple:
    names = dict.fromkeys(text(row.get("variant")) for row in rows)
    return tuple(
        (
            name,
            tuple(
                (float(row["batch_size"]), float(dig(row, *keys)))
                for row in rows
                if text(row.get("variant")) == name and finite(dig(row, *keys)) is not None
            ),
        )
        for name in names
    )


def batch_section(report: Report | None) -> Section:
    title = "Latency against batch size"
    reading = (
        "Larger batches give more images per second until the device is full; from there on they "
        "only add latency. Choose the smallest batch size after which the second chart is flat."
    )
    rows = [row for row in measured(report) if row.get("status") == "ok"]
    if not rows:
        return Section(title, reading, missing=BENCHMARK_COMMAND)
    sizes = sorted({row["batch_size"] for row in rows})
    names = list(dict.fromkeys(row["variant"] for row in rows))
    cells = {(row["variant"], row["batch_size"]): row for row in rows}
    table = tuple(
        (
            text(name),
            *(
                f"{number(dig(cells.get((name, size)), 'latency_ms', 'p50'), 1)} / "
                f"{number(dig(cells.get((name, size)), 'throughput_img_s'), 1)}"
                for size in sizes
            ),
        )
        for name in names
    )
    columns = ("Median ms per batch / images per s", *(f"batch {size}" for size in sizes))
    blocks: list[Block] = [Table(columns, table)]
    if len(sizes) > 1:
        latency, throughput = _series(rows, "latency_ms", "p50"), _series(rows, "throughput_img_s")
        blocks.insert(0, Lines("Images per second", "batch size", throughput))
        blocks.insert(0, Lines("Median latency of a batch, ms", "batch size", latency))
    return Section(title, reading, blocks)


def amp_section(report: Report | None) -> Section:
    title = "Mixed-precision training"
    reading = (
        "The same training steps in FP32 and with automatic mixed precision, taking turns on the "
        "same batches. Mixed precision is worth it where the interval lies above 1 while the "
        "loss and mAP stay where FP32 has them."
    )
    if report is None:
        return Section(title, reading, missing=AMP_COMMAND)
    arms = listed(dig(report, "arms"))
    table = tuple(
        (
            text(dig(arm, "name")),
            number(dig(arm, "step_ms", "p50"), 1),
            number(dig(arm, "step_ms", "p90"), 1),
            number(dig(arm, "step_ms", "p99"), 1),
            interval(dig(arm, "speedup") or dig(report, "speedup")) if index else "baseline",
            number(dig(arm, "peak_memory_mib"), 0),
            number(dig(arm, "final_loss"), 3),
            number(dig(arm, "map_50"), 3),
        )
        for index, arm in enumerate(arms)
    )
    columns = (
        *("Precision", "Step p50 ms", "p90 ms", "p99 ms", "Speed-up (95%)"),
        *("Memory MiB", "Final loss", "mAP at IoU 0.50"),
    )
    blocks: list[Block] = [Table(columns, table), *reasons(arms)]
    blocks += [Note(words) for words in sentences(dig(report, "reading"))]
    return Section(title, reading, [*blocks, *_warnings(report)])
