"""What a comparison of pruned models comes to: the table, the report, and how to read it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from common import artifacts
from common.comparison import compare, interval_text
from phase4_deployment.pruned.channel_removal import NOT_REMOVED
from phase4_deployment.pruned.pruned_models import REMOVED_CHANNELS, UNPRUNED, PruningPlan

if TYPE_CHECKING:
    from common.coco import CocoSplit
    from common.models import LoadedModel

Row = Mapping[str, Any]
DIFFERENT = ("faster", "slower")
COLUMNS = ("", "zeros", "fewer", "MiB", "zip MiB", "GFLOP", "p50 ms", "speed-up", "", "mAP")
FORM = "%-24s %6s %6s %8s %8s %8s %8s  %-19s %-13s %7s %s"


def report(
    rows: Sequence[Row],
    times: Mapping[str, np.ndarray],
    noise: Mapping[str, Any] | None,
    *,
    loaded: "LoadedModel",
    splits: Sequence["CocoSplit"],
    plan: PruningPlan,
    val_images: int,
    max_map_drop: float,
    seed: int,
    device: str,
) -> dict[str, Any]:
    """The content of pruning.json.

    Args:
        splits: those that the result depends on.
        noise: of the unpruned model against its second self.
    """
    inputs = [loaded.path, *(split.annotation_file for split in splits)]
    return {
        **artifacts.provenance("pruning", device, inputs),
        "architecture": loaded.architecture,
        "baseline": UNPRUNED,
        "settings": asdict(plan),
        "max_map_drop": max_map_drop,
        "val_images": val_images,
        "rounds": len(times[UNPRUNED]),
        "noise": noise,
        "not_removed": list(NOT_REMOVED),
        "models": list(rows),
        "conclusion": conclusion(rows, times, noise, seed),
    }


def table_lines(rows: Sequence[Row]) -> list[str]:
    """The rows as the script prints them. `zeros` and `fewer` are shares: of zeros among the
    weights there are, and of numbers that are no longer there."""
    lines = [(FORM % (*COLUMNS, "")).rstrip()]
    for row in rows:
        speedup = row["speedup"]
        cells = (
            row["name"],
            f"{row['zero_share']:.1%}",
            f"{row['removed_share']:.1%}",
            f"{row['size_mib']:.2f}",
            f"{row['size_zip_mib']:.2f}",
            f"{row['gflops']:.2f}",
            f"{row['latency_ms']['p50']:.1f}",
            interval_text(speedup["ratio"], speedup["ci95"]) if speedup else "1 (baseline)",
            row["verdict"] or "",
            map_text(row["map"]),
        )
        before = row["map_before_finetuning"]
        trained = "" if before is None else f"; {map_text(before)} before training"
        lines.append((FORM % (*cells, row["status"] + trained)).rstrip())
    return lines


def map_text(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def conclusion(
    rows: Sequence[Row],
    times: Mapping[str, np.ndarray],
    noise: Mapping[str, Any] | None,
    seed: int,
) -> list[str]:
    """Sentences that read the rows; no model is called faster within the noise."""
    zeroed = [row for row in rows if row["method"] not in (UNPRUNED, REMOVED_CHANNELS)]
    removed = [row for row in rows if row["method"] == REMOVED_CHANNELS]
    sentences = []
    if zeroed:
        sentences += [_about_zeros(zeroed), _about_files(rows[0], zeroed)]
    if removed:
        sentences.append(_about_removal(rows[0], removed, times, noise, seed))
    return sentences


def _about_zeros(zeroed: Sequence[Row]) -> str:
    most = max(row["zero_share"] for row in zeroed)
    differing = [row for row in zeroed if row["verdict"] in DIFFERENT]
    if not differing and any(row["verdict"] != "within noise" for row in zeroed):
        return f"What up to {most:.0%} zeros do to the speed cannot be told from these rounds."
    if not differing:
        return (
            f"Zeros in dense tensors buy no speed: with up to {most:.0%} of them, none of "
            f"{len(zeroed)} models differs from the unpruned one beyond the noise."
        )
    listed = ", ".join(f"{row['name']} {_speed_text(row)}" for row in differing)
    return (
        f"Of {len(zeroed)} models with zeros in dense tensors, {len(differing)} differ in speed "
        f"beyond the noise ({listed}): the layers compute as much as before, but what they find "
        "differs, and with it the work behind them."
    )


def _about_files(unpruned: Row, zeroed: Sequence[Row]) -> str:
    smallest = min(zeroed, key=lambda row: row["size_zip_mib"])
    return (
        f"The file of {smallest['name']} is as large as before ({smallest['size_mib']:.1f} MiB); "
        f"only zipped it shrinks, to {smallest['size_zip_mib']:.1f} MiB "
        f"(unpruned: {unpruned['size_zip_mib']:.1f} MiB)."
    )


def _about_removal(
    unpruned: Row,
    removed: Sequence[Row],
    times: Mapping[str, np.ndarray],
    noise: Mapping[str, Any] | None,
    seed: int,
) -> str:
    faster = [row for row in removed if row["verdict"] == "faster"]
    valid = [row for row in faster if row["status"] == "ok"]
    if not faster:
        return "No model with channels removed is faster beyond the noise."
    if not valid:
        best = max(faster, key=lambda row: row["speedup"]["ratio"])
        return (
            f"Faster are only models that lose too much: {best['name']} {_speed_text(best)}, mAP "
            f"{map_text(best['map'])} instead of {map_text(unpruned['map'])}. Training after the "
            "removal (--finetune-epochs) may bring it back."
        )
    best, ties = best_and_ties(valid, times, noise, seed)
    sentence = (
        f"Channels removed for good buy speed: {best['name']} is {_speed_text(best)} as fast as "
        f"the unpruned model, with mAP {map_text(best['map'])} instead of "
        f"{map_text(unpruned['map'])} and {best['removed_share']:.0%} fewer numbers."
    )
    if ties:
        sentence += f" {', '.join(row['name'] for row in ties)} cannot be told from it in speed."
    return sentence


def best_and_ties(
    faster: Sequence[Row],
    times: Mapping[str, np.ndarray],
    noise: Mapping[str, Any] | None,
    seed: int,
) -> tuple[Row, list[Row]]:
    """The fastest model, and the others that cannot be told from it; among these and the fastest,
    the one with the highest mAP is the first."""
    fastest = max(faster, key=lambda row: row["speedup"]["ratio"])
    known = dict(noise) if noise else None
    equal = [
        row
        for row in faster
        if row is fastest
        or compare(times[fastest["name"]], times[row["name"]], seed=seed, noise=known).verdict
        not in DIFFERENT
    ]
    best = max(equal, key=lambda row: (row["map"] or 0.0, row["removed_share"]))
    return best, [row for row in equal if row is not best]


def _speed_text(row: Row) -> str:
    return interval_text(row["speedup"]["ratio"], row["speedup"]["ci95"], "x")
