"""Whether the results of a variant are still the baseline's, or close enough."""

from collections.abc import Sequence
from typing import Any

from common import evaluation
from common.detection_matching import finite
from common.models import Detections
from phase2_optimization.variants import EXACT, Tolerance


def parity(reference: Sequence[Detections], found: Sequence[Detections]) -> dict[str, float | None]:
    """`evaluation.compare_detections` with the boxes that are numbers."""
    return evaluation.compare_detections(reference, list(map(finite, found)))


def broken(found: Sequence[Detections], reference: Sequence[Detections]) -> str:
    """Why results are worth nothing, whatever is tolerated: 16 bits overflow into numbers that are
    none, and a network of those finds nothing. "" when they are sound."""
    count, expected = (sum(len(one.scores) for one in side) for side in (found, reference))
    numbers = sum(len(finite(one).scores) for one in found)
    if numbers < count:
        return f"{count - numbers} of {count} boxes are no numbers"
    return f"no box where the baseline has {expected}" if expected and not count else ""


def beyond_map(found: float | None, reference: float | None, tolerance: Tolerance) -> str:
    """How mAP differs by more than is tolerated, "" when it does not."""
    if found is None or reference is None or abs(found - reference) <= tolerance.max_map_change:
        return ""
    return (
        f"map {found:.4f} where the baseline has {reference:.4f} "
        f"(tolerance {tolerance.max_map_change})"
    )


def beyond_parity(found: dict[str, Any] | None, tolerance: Tolerance) -> str:
    """How boxes differ by more than is tolerated, "" when they do not.

    Args:
        found: what `parity` returns; None where there was nothing to compare with.
    """
    if found is None:
        return ""
    if found["matched"] < tolerance.min_matched:
        return (
            f"{found['matched']:.1%} of the boxes are the baseline's "
            f"(tolerance {tolerance.min_matched:.0%})"
        )
    if (found["max_box_error_px"] or 0.0) > tolerance.max_box_error_px:
        return (
            f"boxes up to {found['max_box_error_px']:.2f} px away "
            f"(tolerance {tolerance.max_box_error_px} px)"
        )
    return ""


def inexact_without_tf32(reference: Sequence[Detections], found: Sequence[Detections]) -> str:
    """How an exact rung differs from the baseline when both compute in strict FP32, "" when it
    does not, or was not run that way."""
    reason = beyond_parity(parity(reference, found), EXACT) if found else ""
    return f"{reason}, without TF32" if reason else ""
