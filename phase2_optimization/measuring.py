"""The measurement behind benchmark_inference: parity and mAP first, then interleaved timing."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from common import evaluation, timing
from common.cli import UserError, log
from common.coco import CocoSplit
from common.models import Detections, Predictor
from phase2_optimization.variants import BASELINE, VARIANTS, VariantUnavailableError

if TYPE_CHECKING:
    from torchvision.models.detection import FasterRCNN

WARMUP_ROUNDS = 2
BASELINE_AGAIN = f"{BASELINE} (again)"  # the A/A arm: any difference from BASELINE is noise
DISTINCT_BATCHES = 8  # batches of different images that the timed rounds go through
MEMORY_SHARE = 0.8  # of the free memory of the machine that a CPU run may take


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
    accuracy: dict[str, Any] = field(default_factory=dict)
    found: list[Detections] = field(default_factory=list)  # on the evaluated images
    peak_mib: dict[int, float | None] = field(default_factory=dict)  # by batch size
    out_of_memory: set[int] = field(default_factory=set)  # batch sizes


class Benchmark:
    """Checks and times the variants of one model.

    Attributes:
        rows: one per variant and batch size, with the keys of the report's `results`.
    """

    def __init__(
        self,
        model: "FasterRCNN",
        device: torch.device,
        split: CocoSplit,
        images: Sequence[np.ndarray],
        num_iterations: int,
        time_budget_s: float,
        max_images: int,
        seed: int,
    ):
        self.rows: list[dict[str, Any]] = []
        self._model, self._device, self._split, self._images = model, device, split, images
        self._num_iterations, self._time_budget_s = num_iterations, time_budget_s
        self._max_images, self._seed = max_images, seed
        self._checks: dict[str, Check] = {}
        self._predictors: dict[str, Predictor] = {}
        self._noise: dict[int, dict[str, Any]] = {}
        self._times: dict[tuple[str, int], np.ndarray] = {}
        self._memory_kind = ""

    # --- accuracy and memory, one variant at a time so that only its weights are on the device ---

    def check(self, names: Sequence[str], batch_sizes: Sequence[int]) -> None:
        """Runs each variant over the validation images, then once at every batch size.

        Raises:
            UserError: the baseline does not fit into memory even at the smallest batch size.
        """
        for name in names:
            check = self._checks[name] = Check()
            timing.release_free_memory(self._device)
            try:
                with _bounded_host_memory(self._device):
                    self._check_one(name, check, batch_sizes)
            except VariantUnavailableError as error:
                check.failure = f"unavailable: {error}"
            except Exception as error:
                if not timing.is_out_of_memory(error):
                    raise
                check.failure = "oom"
            if name == BASELINE and (check.failure or min(batch_sizes) in check.out_of_memory):
                raise UserError(
                    f"--batch-sizes {min(batch_sizes)}",
                    "the model does not fit into memory",
                    "use smaller batch sizes, a smaller --image-size or another --device",
                )
        for name, check in self._checks.items():
            if not check.failure:
                self._predictors[name] = VARIANTS[name].predictor(self._model, self._device)

    def _check_one(self, name: str, check: Check, batch_sizes: Sequence[int]) -> None:
        predict = VARIANTS[name].predictor(self._model, self._device)

        def recorded(images: Sequence[np.ndarray]) -> list[Detections]:
            detections = predict(images)
            check.found += detections
            return detections

        log.info("Checking %s: %s", name, VARIANTS[name].description)
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
            self._memory_kind = memory.kind

    def _batches(self, batch_size: int) -> list[list[np.ndarray]]:
        """Up to DISTINCT_BATCHES batches that go round the images."""
        count = min(DISTINCT_BATCHES, -(-len(self._images) // batch_size))
        return [
            [self._images[(i * batch_size + j) % len(self._images)] for j in range(batch_size)]
            for i in range(count)
        ]

    # --- timing, all variants of a batch size interleaved ----------------------------------------

    def time(self, batch_size: int) -> None:
        """Times every variant that fits at this batch size and appends a row for each."""
        batches = self._batches(batch_size)
        arms = {
            name: Arm(name, predict, batches)
            for name, predict in self._predictors.items()
            if batch_size not in self._checks[name].out_of_memory
        }
        if BASELINE in arms:
            arms[BASELINE_AGAIN] = Arm(BASELINE_AGAIN, self._predictors[BASELINE], batches)
        times: dict[str, np.ndarray] = {}
        while arms and not times:
            try:
                with _bounded_host_memory(self._device):
                    times = timing.measure_interleaved(
                        arms,
                        rounds=self._num_iterations,
                        warmup=WARMUP_ROUNDS,
                        device=self._device,
                        seed=self._seed,
                        budget_s=self._time_budget_s * len(arms),
                    )
            except ArmOutOfMemoryError as error:  # go on with the others
                del arms[str(error)]
        if BASELINE in times and BASELINE_AGAIN in times:
            self._noise[batch_size] = timing.ratio_with_ci(
                times[BASELINE], times[BASELINE_AGAIN], self._seed
            )
        for name in self._checks:
            self.rows.append(self._row(name, batch_size, times, arms))
            if name in times:
                self._times[name, batch_size] = times[name]

    def _row(
        self, name: str, batch_size: int, times: dict[str, np.ndarray], arms: dict[str, Arm]
    ) -> dict[str, Any]:
        check, ms = self._checks[name], times.get(name)
        row: dict[str, Any] = {
            "variant": name,
            "batch_size": batch_size,
            "iterations": 0 if ms is None else len(ms),
            "throughput_img_s": None,
            "latency_ms": None,
            "peak_memory_mib": check.peak_mib.get(batch_size),
            "speedup": None,
            "parity": None,
            "map": check.accuracy.get("map"),
            "map_50": check.accuracy.get("map_50"),
            "verdict": None,
            "status": check.failure or "oom",
        }
        if ms is None:
            return row
        row["latency_ms"] = timing.summarise(ms)
        row["throughput_img_s"] = batch_size / row["latency_ms"]["p50"] * 1e3
        if BASELINE in times:
            row["speedup"] = timing.ratio_with_ci(times[BASELINE], ms, self._seed)
            row["parity"] = self._parity(name, arms)
        row["status"] = self._status(name, row)
        row["verdict"] = self._verdict(name, row)
        return row

    def _parity(self, name: str, arms: dict[str, Arm]) -> dict[str, float | None]:
        """Against the baseline, on the evaluated images and on the timed batches."""
        reference, found = list(self._checks[BASELINE].found), list(self._checks[name].found)
        for index in sorted(arms[BASELINE].found.keys() & arms[name].found.keys()):
            reference += arms[BASELINE].found[index]
            found += arms[name].found[index]
        return evaluation.compare_detections(reference, found)

    def _status(self, name: str, row: dict[str, Any]) -> str:
        """ "ok", or "invalid: …" when results are further from the baseline's than tolerated."""
        tolerance, parity = VARIANTS[name].tolerance, row["parity"]
        reference_map, found_map = self._checks[BASELINE].accuracy["map"], row["map"]
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

    def _verdict(self, name: str, row: dict[str, Any]) -> str | None:
        """Whether the interval lies clear of 1 by more than equal arms differ from each other."""
        if name == BASELINE:
            return "baseline"
        noise = self._noise.get(row["batch_size"])
        if noise is None or row["speedup"] is None:
            return None
        width = max(abs(bound - 1) for bound in noise["ci95"])
        low, high = row["speedup"]["ci95"]
        if row["iterations"] < timing.MIN_ROUNDS:
            return "too few iterations to tell"
        if low > 1 + width:
            return "faster"
        return "slower" if high < 1 - width else "within noise"

    # --- the report ------------------------------------------------------------------------------

    def report(self) -> dict[str, Any]:
        """Everything measured so far, with the keys of inference_benchmark.json."""
        best = self._best_rows()
        winner = self._winner(best)
        optimal = winner or best.get(BASELINE)
        return {
            "memory_kind": self._memory_kind,
            "throughput_img_s_is": "batch size / p50 latency",
            "baseline": BASELINE,
            "variants": {
                name: {
                    "description": VARIANTS[name].description,
                    "accuracy": check.accuracy or None,
                    "status": check.failure or "ok",
                }
                for name, check in self._checks.items()
            },
            "noise": {str(batch_size): noise for batch_size, noise in self._noise.items()},
            "results": self.rows,
            "optimal_batch_size": optimal["batch_size"] if optimal else None,
            "optimal_batch_size_by_variant": {
                name: row["batch_size"] for name, row in best.items()
            },
            "fastest_variant": winner["variant"] if winner else None,
            "conclusion": self._conclusion(best, winner),
        }

    def _best_rows(self) -> dict[str, dict[str, Any]]:
        """variant -> its row with the smallest batch size whose throughput is the highest one,
        or cannot be told from it: a larger batch would then only add latency."""
        best: dict[str, dict[str, Any]] = {}
        for name in self._checks:
            rows = [r for r in self.rows if r["variant"] == name and r["status"] == "ok"]
            if not rows:
                continue
            top = max(rows, key=lambda row: row["throughput_img_s"])
            best[name] = min(
                (row for row in rows if row is top or not self._differ(row, top)),
                key=lambda row: row["batch_size"],
            )
        return best

    def _differ(self, row: dict[str, Any], other: dict[str, Any]) -> bool:
        """Whether the times per image of two rows differ beyond their 95% interval."""
        first, second = (
            self._times[r["variant"], r["batch_size"]] / r["batch_size"] for r in (row, other)
        )
        low, high = timing.ratio_with_ci(first, second, self._seed)["ci95"]
        return not low <= 1 <= high

    def _winner(self, best: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
        """The row with the highest throughput among variants that are faster beyond the noise."""
        faster = [row for row in best.values() if row["verdict"] == "faster"]
        return max(faster, key=lambda row: row["throughput_img_s"], default=None)

    def _conclusion(self, best: dict[str, dict[str, Any]], winner: dict[str, Any] | None) -> str:
        if winner is None:
            return f"No winner: no valid variant is faster than {BASELINE} beyond the noise."
        ratio, (low, high) = winner["speedup"]["ratio"], winner["speedup"]["ci95"]
        same_size = [
            r
            for r in self.rows
            if r["batch_size"] == winner["batch_size"] and r["status"] == "ok" and r is not winner
        ]
        ties = [row["variant"] for row in same_size if not self._differ(row, winner)]
        return (
            f"Fastest: {winner['variant']} at batch size {winner['batch_size']}, "
            f"{winner['throughput_img_s']:.1f} images/s, {ratio:.2f}x [{low:.2f}, {high:.2f}] "
            f"{BASELINE} at that batch size"
            + (f"; not told apart from it: {', '.join(ties)}." if ties else ".")
        )


@contextlib.contextmanager
def _bounded_host_memory(device: torch.device) -> Iterator[None]:
    """Makes a CPU run that would exhaust the machine fail with an error the caller can catch.

    Linux kills a process that takes more memory than there is; under a limit the allocation
    itself fails instead. Elsewhere, and on a GPU, nothing is limited.
    """
    available_mib, data_mib = timing.available_mib(), timing.proc_status_mib("VmData")
    if device.type != "cpu" or available_mib is None or data_mib is None:
        yield
        return
    import resource  # there on every system that has /proc

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = int((data_mib + available_mib * MEMORY_SHARE) * timing.MIB)
    for present in (soft, hard):
        if present != resource.RLIM_INFINITY:
            limit = min(limit, present)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
