"""The measurement behind benchmark_inference: parity and mAP first, then interleaved timing."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from common import evaluation, timing
from common.cli import UserError, log
from common.coco import CocoSplit
from common.comparison import compare
from common.models import Detections, Predictor
from phase2_optimization import batch_search
from phase2_optimization.batch_search import Measured
from phase2_optimization.builders import VariantUnavailableError, Workshop
from phase2_optimization.host_memory import bounded_host_memory
from phase2_optimization.variants import BASELINE, VARIANTS, rungs_below

if TYPE_CHECKING:
    from torchvision.models.detection import FasterRCNN

BASELINE_AGAIN = f"{BASELINE} (again)"  # the A/A arm: any difference from BASELINE is noise
DISTINCT_BATCHES = 8  # batches of different images that the timed rounds go through
UNTIMED = "untimed: in every round the clock went back or the machine slept"


class ArmOutOfMemoryError(Exception):
    """An arm did not fit into memory; `str(error)` is its name."""


class Arm:
    """A predictor over a fixed round of batches; keeps what it found in each."""

    def __init__(self, name: str, predict: Predictor, batches: Sequence[list[np.ndarray]]):
        self.found: dict[int, list[Detections]] = {}
        self._name, self._predict, self._batches = name, predict, batches
        self._calls = 0

    def __call__(self) -> None:
        index = self._calls % len(self._batches)
        self._calls += 1
        try:
            self.found[index] = self._predict(self._batches[index])
        except Exception as error:
            if not timing.is_out_of_memory(error):
                raise
            raise ArmOutOfMemoryError(self._name) from None


@dataclass
class Check:
    """What is known of a variant before it is timed."""

    failure: str = ""  # why it cannot run at all
    build_s: float | None = None  # building it and its first call: export, compilation, calibration
    accuracy: dict[str, Any] = field(default_factory=dict)
    found: list[Detections] = field(default_factory=list)  # on the evaluated images
    peak_mib: dict[int, float | None] = field(default_factory=dict)  # by batch size
    out_of_memory: set[int] = field(default_factory=set)  # batch sizes


class Benchmark:
    """Checks and times the variants of one model.

    Attributes:
        rows: one per variant and batch size, with the keys of the report's `results`.
        checks: of the variants, in the order they were given.
        times: (variant, batch size) -> milliseconds per call.
        noise: batch size -> ratio and interval of the baseline against its second self.
    """

    def __init__(
        self,
        model: "FasterRCNN",
        workshop: Workshop,
        split: CocoSplit,
        images: Sequence[np.ndarray],
        num_iterations: int,
        time_budget_s: float,
        max_images: int,
        seed: int,
    ):
        self.rows: list[dict[str, Any]] = []
        self.checks: dict[str, Check] = {}
        self.times: dict[tuple[str, int], np.ndarray] = {}
        self.noise: dict[int, dict[str, Any]] = {}
        self.memory_kind = ""
        self._model, self._workshop, self._split, self._images = model, workshop, split, images
        self._num_iterations, self._time_budget_s = num_iterations, time_budget_s
        self._max_images, self._seed = max_images, seed
        self._device = workshop.device
        self._predictors: dict[str, Predictor] = {}

    # --- accuracy and memory, one variant at a time so that only its weights are on the device ---

    def check(
        self, names: Sequence[str], batch_sizes: Sequence[int], skipped: dict[str, str]
    ) -> None:
        """Runs each variant over the validation images, then once at every batch size.

        Args:
            skipped: variants among the names that are not to run, and why.

        Raises:
            UserError: the baseline does not fit into memory even at the smallest batch size.
        """
        for name in names:
            check = self.checks[name] = Check(failure=skipped.get(name, ""))
            if check.failure:
                continue
            timing.release_free_memory(self._device)
            try:
                with bounded_host_memory(self._device):
                    self._check_one(name, check, batch_sizes)
            except VariantUnavailableError as error:
                check.failure = f"unavailable: {error}"
            except UserError:
                raise
            except Exception as error:  # of a compiler or a runtime; the other rungs go on
                if timing.is_out_of_memory(error):
                    check.failure = "oom"
                elif name == BASELINE:
                    raise
                else:
                    reason = " ".join(f"{type(error).__name__}: {error}".split())
                    check.failure = f"failed: {reason:.200}"
                    log.warning("%s %s", name, check.failure)
                    log.debug("%s", name, exc_info=True)
            if name == BASELINE and (check.failure or min(batch_sizes) in check.out_of_memory):
                raise UserError(
                    f"--batch-sizes {min(batch_sizes)}",
                    "the model does not fit into memory",
                    "use smaller batch sizes, a smaller --image-size or another --device",
                )
        for name, check in self.checks.items():
            if not check.failure:
                self._predictors[name] = VARIANTS[name].predictor(self._model, self._workshop)

    def _check_one(self, name: str, check: Check, batch_sizes: Sequence[int]) -> None:
        log.info("Checking %s: %s", name, VARIANTS[name].description)
        started = perf_counter()
        predict = VARIANTS[name].predictor(self._model, self._workshop)
        predict(self._batches(min(batch_sizes))[0])
        check.build_s = perf_counter() - started

        def recorded(images: Sequence[np.ndarray]) -> list[Detections]:
            detections = predict(images)
            check.found += detections
            return detections

        check.accuracy = evaluation.evaluate(recorded, self._split, max_images=self._max_images)
        for batch_size in sorted(batch_sizes):
            try:
                with timing.PeakMemory(self._device) as memory:
                    predict(self._batches(batch_size)[0])
            except Exception as error:
                if not timing.is_out_of_memory(error):
                    raise
                check.out_of_memory |= {size for size in batch_sizes if size >= batch_size}
                return
            check.peak_mib[batch_size] = memory.mib
            self.memory_kind = memory.kind

    def _batches(self, batch_size: int) -> list[list[np.ndarray]]:
        """Up to DISTINCT_BATCHES batches that go round the images."""
        count = min(DISTINCT_BATCHES, -(-len(self._images) // batch_size))
        return [
            [self._images[(i * batch_size + j) % len(self._images)] for j in range(batch_size)]
            for i in range(count)
        ]

    # --- timing, all variants of a batch size interleaved ----------------------------------------

    def time(self, batch_size: int, names: Sequence[str] | None = None) -> None:
        """Times every variant that fits at this batch size and appends a row for each.

        Args:
            names: only these, and the baseline; all by default.
        """
        names = list(self.checks) if names is None else list(dict.fromkeys([BASELINE, *names]))
        batches = self._batches(batch_size)
        arms = {
            name: Arm(name, self._predictors[name], batches)
            for name in names
            if name in self._predictors and batch_size not in self.checks[name].out_of_memory
        }
        if BASELINE in arms:
            arms[BASELINE_AGAIN] = Arm(BASELINE_AGAIN, self._predictors[BASELINE], batches)
        times: dict[str, np.ndarray] = {}
        while arms and not times:
            try:
                with bounded_host_memory(self._device):
                    times = timing.measure_interleaved(
                        arms,
                        rounds=self._num_iterations,
                        device=self._device,
                        seed=self._seed,
                        budget_s=self._time_budget_s * len(arms),
                    )
            except ArmOutOfMemoryError as error:  # go on with the others
                del arms[str(error)]
        for name in names:
            if len(times.get(name, ())):
                self.times[name, batch_size] = times[name]
        for name in names:
            self.rows.append(self._row(name, batch_size, times, arms))

    def search(self, name: str, latency_budget_ms: float | None) -> list[int]:
        """Looks for the batch size that suits a variant best; every size tried appends rows, for
        the baseline, too. Returns the sizes."""

        def measure(batch_size: int) -> Measured | None:
            if (name, batch_size) not in self.times:
                log.info("Trying batch size %d with %s", batch_size, name)
                self.time(batch_size, [name])
            times = self.times.get((name, batch_size))
            if times is None:
                return None
            latency = timing.summarise(times)
            return Measured(batch_size / latency["p50"] * 1e3, latency["p90"])

        return list(batch_search.search(measure, latency_budget_ms))

    def _row(
        self, name: str, batch_size: int, times: dict[str, np.ndarray], arms: dict[str, Arm]
    ) -> dict[str, Any]:
        check, ms = self.checks[name], times.get(name)
        row: dict[str, Any] = {
            "variant": name,
            "batch_size": batch_size,
            "iterations": 0 if ms is None else len(ms),
            "throughput_img_s": None,
            "latency_ms": None,
            "peak_memory_mib": check.peak_mib.get(batch_size),
            "speedup": None,
            "step": None,
            "parity": None,
            "map": check.accuracy.get("map"),
            "map_50": check.accuracy.get("map_50"),
            "verdict": None,
            "status": check.failure or ("oom" if ms is None else UNTIMED),
        }
        if ms is None or not len(ms):
            return row
        row["latency_ms"] = timing.summarise(ms)
        row["throughput_img_s"] = batch_size / row["latency_ms"]["p50"] * 1e3
        row["step"] = self._step(name, times)
        row["verdict"] = "baseline" if name == BASELINE else None
        if BASELINE in times:
            against = compare(times[BASELINE], ms, times.get(BASELINE_AGAIN), self._seed)
            row["speedup"] = {"ratio": against.ratio, "ci95": list(against.ci95)}
            row["parity"] = self._parity(name, arms)
            if name != BASELINE and against.noise:
                row["verdict"] = against.verdict
                self.noise[batch_size] = against.noise
        row["status"] = self._status(name, row)
        return row

    def _step(self, name: str, times: dict[str, np.ndarray]) -> dict[str, Any] | None:
        """How many times as fast the variant is as the next rung below that was timed."""
        below = next((rung for rung in rungs_below(name) if rung in times), None)
        if below is None:
            return None
        compared = compare(times[below], times[name], seed=self._seed)
        return {"over": below, "ratio": compared.ratio, "ci95": list(compared.ci95)}

    def _parity(self, name: str, arms: dict[str, Arm]) -> dict[str, float | None]:
        """Against the baseline, on the evaluated images and on the timed batches."""
        reference, found = list(self.checks[BASELINE].found), list(self.checks[name].found)
        for index in sorted(arms[BASELINE].found.keys() & arms[name].found.keys()):
            reference += arms[BASELINE].found[index]
            found += arms[name].found[index]
        return evaluation.compare_detections(reference, [_finite(one) for one in found])

    def _status(self, name: str, row: dict[str, Any]) -> str:
        """ "ok", or "invalid: …" when results are further from the baseline's than tolerated."""
        broken = _broken(self.checks[name].found, self.checks[BASELINE].found)
        if broken:
            return f"invalid: {broken}"
        tolerance, parity = VARIANTS[name].tolerance_on(self._device), row["parity"]
        reference_map, found_map = self.checks[BASELINE].accuracy["map"], row["map"]
        if reference_map is not None and abs(found_map - reference_map) > tolerance.max_map_change:
            return (
                f"invalid: map {found_map:.4f} where the baseline has {reference_map:.4f} "
                f"(tolerance {tolerance.max_map_change})"
            )
        if parity is None:
            return "ok"
        if parity["matched"] < tolerance.min_matched:
            return (
                f"invalid: {parity['matched']:.1%} of the boxes are the baseline's "
                f"(tolerance {tolerance.min_matched:.0%})"
            )
        if (parity["max_box_error_px"] or 0.0) > tolerance.max_box_error_px:
            return (
                f"invalid: boxes up to {parity['max_box_error_px']:.2f} px away "
                f"(tolerance {tolerance.max_box_error_px} px)"
            )
        return "ok"


def _finite(found: Detections) -> Detections:
    """The detections that are numbers."""
    keep = np.isfinite(found.boxes_xyxy).all(axis=1) & np.isfinite(found.scores)
    return Detections(*(values[keep] for values in found))


def _broken(found: Sequence[Detections], reference: Sequence[Detections]) -> str:
    """Why results are worth nothing, whatever is tolerated: 16 bits overflow into numbers that are
    none, and a network of those finds nothing. "" when they are sound."""
    count, expected = (sum(len(one.scores) for one in side) for side in (found, reference))
    numbers = sum(len(_finite(one).scores) for one in found)
    if numbers < count:
        return f"{count - numbers} of {count} boxes are no numbers"
    return f"no box where the baseline has {expected}" if expected and not count else ""
