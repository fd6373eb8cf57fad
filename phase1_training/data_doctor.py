"""The examination of a data set: what `check_data.py` shows and every training begins with."""

import contextlib
import shlex
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common import paths
from common.cli import UserError
from common.coco_files import MissingSplitError, find_annotations, read_annotations
from common.coco_format import ParsedFile, Problem, parse_content
from phase1_training import data_checks, image_checks
from phase1_training.anchor_fit import Anchors, anchors_of

SEVERITIES = ("error", "warning", "note")
SUMMARY_KINDS = 8  # lines of a summary


def examine(
    data_path: Path,
    *,
    architecture: str,
    min_size: int,
    max_size: int,
    workers: int,
    cache: Path | None,
    anchor_sizes: tuple[int, ...] | None = None,
) -> dict[str, Any]:
    """Refuses data that would crash a training or spoil it silently, before its first step.

    Args:
        architecture, min_size, max_size: the model and the resize that boxes are judged by.
        workers: threads that decode images.
        cache: see `image_checks.read_pictures`; None reads every image.
        anchor_sizes: in place of the architecture's own.

    Returns:
        The report of `inspect`; warnings are left to `summary_lines`.

    Raises:
        UserError: the first error, and the command that lists all of them.
    """
    report, splits = _check_annotations(
        data_path, anchors_of(architecture, anchor_sizes), architecture, min_size, max_size
    )
    _refuse_errors(report, data_path)  # before minutes of decoding
    _check_images(report, splits, workers, cache)
    _refuse_errors(report, data_path)
    return report


def inspect(
    data_path: Path,
    *,
    architecture: str,
    min_size: int,
    max_size: int,
    workers: int = 0,
    cache: Path | None = None,
    anchor_sizes: tuple[int, ...] | None = None,
) -> dict[str, Any]:
    """Examines annotations and images and lists everything; arguments as of `examine`.

    Returns:
        `counts` per split; `pictures`, a digest of all pixels per split; `anchors`, see
        `anchor_fit.anchor_report`; and `problems`, errors first, each with kind, severity, split,
        image, annotation_id and message.

    Raises:
        UserError: there are no training annotations, or a file is not JSON at all.
    """
    report, splits = _check_annotations(
        data_path, anchors_of(architecture, anchor_sizes), architecture, min_size, max_size
    )
    _check_images(report, splits, workers, cache)
    return report


def _check_annotations(
    data_path: Path, anchors: Anchors, architecture: str, min_size: int, max_size: int
) -> tuple[dict[str, Any], dict[str, ParsedFile]]:
    splits: dict[str, ParsedFile] = {}
    for name in ("train", "val"):
        try:
            file = find_annotations(data_path, name)
        except MissingSplitError:
            if name == "train":
                raise
        else:
            splits[name] = parse_content(data_path, file, read_annotations(file))
    report: dict[str, Any] = {
        "architecture": architecture,
        "min_size": min_size,
        "max_size": max_size,
        "counts": {},
        "anchors": None,
        "pictures": {},
        "problems": [],
    }
    for name, parsed in splits.items():
        found = [*parsed.problems]
        if parsed.split is not None:
            report["counts"][name] = data_checks.count(parsed)
            found += data_checks.file_problems(parsed) + data_checks.split_problems(parsed)
            resized, fit = data_checks.resized_problems(parsed, anchors, min_size, max_size)
            if name == "train":
                report["anchors"] = fit
            # How anchors fit is a matter of training; val boxes are counted above.
            learnt = ("anchor recall", "no anchor")
            found += [p for p in resized if name == "train" or p.kind not in learnt]
        _add(report, name, found)
    _add(report, "val", data_checks.pair_problems(splits["train"], splits.get("val")))
    return report, splits


def _check_images(
    report: dict[str, Any], splits: Mapping[str, ParsedFile], workers: int, cache: Path | None
) -> None:
    pictures = {}
    for name, parsed in splits.items():
        files = [record.path for record in parsed.split.records] if parsed.split else []
        pictures[name] = image_checks.read_pictures(
            files, workers=workers, cache=cache, label=f"{name} images"
        )
        report["pictures"][name] = image_checks.digest(pictures[name])
    for name, found in image_checks.picture_problems(splits, pictures).items():
        _add(report, name, found)


def _add(report: dict[str, Any], split: str, problems: list[Problem]) -> None:
    listed = report["problems"]
    listed += [{"split": split, **vars(problem)} for problem in problems]
    listed.sort(key=lambda problem: SEVERITIES.index(problem["severity"]))  # stable


def _refuse_errors(report: Mapping[str, Any], data_path: Path) -> None:
    errors = [p for p in report["problems"] if p["severity"] == "error"]
    if not errors:
        return
    where = data_path
    with contextlib.suppress(MissingSplitError):  # the fault may be that there is no val file
        where = find_annotations(data_path, errors[0]["split"])
    others = f" (and {len(errors) - 1} more errors)" if len(errors) > 1 else ""
    command = ["python", "phase1_training/check_data.py", "--data-path", paths.display(data_path)]
    raise UserError(where, line(errors[0]) + others, f"list all with: {shlex.join(command)}")


# --- in words ---------------------------------------------------------------------------------


def line(problem: Mapping[str, Any]) -> str:
    image = f"{problem['image']}: " if problem["image"] else ""
    return f"{image}{problem['message']}"


def groups(report: Mapping[str, Any]) -> list[tuple[tuple[str, str, str], list[dict[str, Any]]]]:
    """The problems by (severity, kind, split), errors first and the most frequent kinds first."""
    grouped: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for problem in report["problems"]:
        key = (problem["severity"], problem["kind"], problem["split"])
        grouped.setdefault(key, []).append(problem)
    return sorted(grouped.items(), key=lambda item: (SEVERITIES.index(item[0][0]), -len(item[1])))


def summary_lines(report: Mapping[str, Any]) -> list[str]:
    """The warnings in a few lines: a kind each, with its number and its first offender."""
    warned = [(key, found) for key, found in groups(report) if key[0] == "warning"]
    lines = [
        f"data, {split}: {kind}, {len(found)} times, first {line(found[0])}"
        if len(found) > 1
        else f"data, {split}: {kind}: {line(found[0])}"
        for (_, kind, split), found in warned[:SUMMARY_KINDS]
    ]
    others = Counter(kind for (_, kind, _), _ in warned[SUMMARY_KINDS:])
    return [*lines, f"data: also {', '.join(others)}"] if others else lines
