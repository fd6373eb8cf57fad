"""Two runs side by side: the same sections for both, and what differs outside the noise."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from common.reporting import quantities
from common.reporting.blocks import Block, Card, Lines, Note, Section, Table, dig, finite, listed
from common.reporting.detection import mean_curve, precision_curves
from common.reporting.difference import OUTSIDE, UNKNOWN, Quantity, by_name
from common.reporting.inputs import Inputs
from common.reporting.quantities import Pair

Report = Mapping[str, Any]
Curve = Sequence[tuple[float, float]]

COLUMNS = ("Quantity", "A", "B", "Change", "Difference")
READING = (
    "A difference is marked when the 95% intervals of both runs (of mAP in mixed precision: its "
    "ranges over the seeds) lie apart by more than the noise within them. Where a run has one "
    "value and no interval, the noise is not known and nothing is marked, however large the "
    "difference looks. Sizes of files are exact. Speed-ups are ratios within a run: a machine that "
    "was slower in one of the runs hardly moves them, but it moves every time in milliseconds."
)
SECTIONS: dict[str, tuple[str, Callable[[Pair], list[Quantity]]]] = {  # title -> report, reader
    "Training": ("training", quantities.training),
    "Detections": ("evaluation", quantities.evaluation),
    "Where the time goes": ("profile", quantities.profile),
    "Speed-ups": ("inference_benchmark", quantities.benchmark),
    "Mixed-precision training": ("amp_comparison", quantities.amp),
    "Tracking": ("tracking_eval", quantities.tracking),
    "Videos": ("videos", quantities.videos),
    "Exported formats": ("export", quantities.formats),
    "Pruned models": ("pruning", quantities.pruning),
}
NAMED = {  # report -> its list whose entries are compared by name, and the key of that name
    "evaluation": ("classes", "name"),
    "inference_benchmark": ("results", "variant"),
    "amp_comparison": ("arms", "name"),
    "export": ("formats", "name"),
    "pruning": ("models", "name"),
}


def sections(first: Inputs, second: Inputs) -> tuple[list[Section], list[Card]]:
    """A section for each result that one of the runs has, and cards that count the differences."""
    made: list[Section] = []
    verdicts: list[str] = []
    for title, (name, reader) in SECTIONS.items():
        pair = _report(first, name), _report(second, name)
        if not all(pair):
            if any(pair):
                which = "A" if pair[0] else "B"
                made.append(Section(title, f"Only {which} has this result."))
            continue
        compared = [quantity for quantity in reader(pair) if quantity.is_measured]
        verdicts += [quantity.verdict() for quantity in compared]
        rows = tuple(quantity.cells() for quantity in compared)
        shades = tuple((0.0, 0.0, 0.0, 0.0, quantity.shade()) for quantity in compared)
        nothing = Note("The two have nothing in common that could be compared.")
        table = Table(COLUMNS, rows, shades) if rows else nothing
        blocks: list[Block] = [*_charts(name, pair), table, *_of_one_run(name, pair)]
        made.append(Section(title, "", blocks))
    return made, _cards(verdicts)


def _of_one_run(name: str, pair: Pair) -> list[Note]:
    """What cannot be compared because the other run lacks it, in a sentence for each run."""
    list_key, key = NAMED.get(name, ("", ""))
    names = [report if name == "videos" else by_name(dig(report, list_key), key) for report in pair]
    only = [[each for each in names[run] if each not in names[1 - run]] for run in (0, 1)]
    return [
        Note(f"Only in {which}: {', '.join(found)}.")
        for which, found in zip("AB", only, strict=True)
        if found
    ]


def _report(run: Inputs, name: str) -> Report | None:
    return run.videos if name == "videos" else run.metrics.get(name)


def _cards(verdicts: Sequence[str]) -> list[Card]:
    outside = sum(verdict.startswith(OUTSIDE) for verdict in verdicts)
    unknown = sum(verdict == UNKNOWN for verdict in verdicts)
    return [
        Card("Outside the noise", str(outside), f"of {len(verdicts)} quantities compared"),
        Card("Noise not known", str(unknown), "single values without an interval"),
    ]


def _charts(name: str, pair: Pair) -> list[Block]:
    """Of trainings the mAP, of evaluations the mean precision-recall curve, of both runs."""
    if name == "training":
        curves = [_map_curve(report) for report in pair]
        return _chart("Validation mAP", "epoch", curves, is_scale=False)
    if name == "evaluation":
        curves = [mean_curve(precision_curves(report)) for report in pair]
        title = "Precision over recall at IoU 0.50, mean of all classes"
        return _chart(title, "recall", curves, is_scale=True)
    return []


def _chart(title: str, x_label: str, curves: Sequence[Curve], *, is_scale: bool) -> list[Block]:
    if not all(curves):
        return []
    series = tuple((run, tuple(curve)) for run, curve in zip("AB", curves, strict=True))
    return [Lines(title, x_label, series, y_max=1.0, is_scale=is_scale)]


def _map_curve(report: Report) -> Curve:
    return [
        (epoch, value)
        for row in listed(dig(report, "epochs"))
        if (epoch := finite(row.get("epoch"))) is not None
        and (value := finite(dig(row, "val", "map"))) is not None
    ]
