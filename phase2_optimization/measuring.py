"""The measurement behind benchmark_inference: parity and mAP first, then interleaved timing."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from common import evaluation, timing
from common.cli import UserError, log
from common.coco import CocoSplit
from common.comparison import noise_between
from common.gpu_state import gpu_state
from common.models import Detections, Predictor
from common.processor_share import ProcessorShare
from phase2_optimization import batch_search
from phase2_optimization.arms import AGAIN, Arm, ArmFailedError, Pair, Timed, second_self
from phase2_optimization.batch_search import Measured
from phase2_optimization.builders import VariantUnavailableError, Workshop
from phase2_optimization.ladder_rows import Check, Noise, Rows
from phase2_optimization.memory_use import HeldMemory, bounded_host_memory
from phase2_optimization.variants import BASELINE, EXACT, VARIANTS

if TYPE_CHECKING:
    from torchvision.models.detection import FasterRCNN

DISTINCT_BATCHES = 8  # batches of different images that the timed rounds go through


class Benchmark:
    """Checks and times the variants of one model.

    Attributes:
        rows: one per variant and batch size, with the keys of the report's `results`.
        checks: of the variants, in the order they were given.
        times, noise: see `ladder_rows.Rows`.
        final: like `times` for arms of several batch sizes, all timed in the same rounds.
        final_noise: ratio and interval in these rounds of one arm against its second self; None
            where it is not known.
        processor_shares: a set of rounds -> the share of its time in which the main thread ran.
        gpu_before: state of the GPU when the first arms were warm, see `common.gpu_state`.
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
        self.checks: dict[str, Check] = {}
        self.final: dict[Pair, np.ndarray] = {}
        self.final_noise: Noise | None = None
        self.processor_shares: dict[str, float] = {}
        self.gpu_before: dict[str, Any] | None = None
        self.memory_kind = ""
        self._model, self._workshop, self._split, self._images = model, workshop, split, images
        self._num_iterations, self._time_budget_s = num_iterations, time_budget_s
        self._max_images, self._seed = max_images, seed
        self._device = workshop.device
        self._made = Rows(self.checks, self._device, seed)
        self.rows, self.times, self.noise = self._made.rows, self._made.times, self._made.noise
        self._predictors: dict[str, Predictor] = {}
        self._rounds_ids = count(1)

    # --- accuracy and memory, one variant at a time so that only its weights are on the device ---

    def check(
        self, names: Sequence[str], batch_sizes: Sequence[int], skipped: Mapping[str, str]
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
                    check.failure = _failure(name, error)
            if name == BASELINE and (check.failure or min(batch_sizes) in check.out_of_memory):
                raise UserError(
                    f"--batch-sizes {min(batch_sizes)}",
                    "the model does not fit into memory",
                    "use smaller batch sizes, a smaller --image-size or another --device",
                )

    def _check_one(self, name: str, check: Check, batch_sizes: Sequence[int]) -> None:
        log.info("Checking %s: %s", name, VARIANTS[name].description)
        memory = HeldMemory(self._device)
        started = perf_counter()
        predict = VARIANTS[name].predictor(self._model, self._workshop)
        predict(self._batches(min(batch_sizes))[0])
        check.build_s = perf_counter() - started
        check.accuracy, check.found = self._evaluated(predict)
        for size in sorted(batch_sizes):
            try:
                check.peak_mib[size] = memory.of_call(partial(predict, self._batches(size)[0]))
            except Exception as error:
                if not timing.is_out_of_memory(error):
                    raise
                check.out_of_memory |= {larger for larger in batch_sizes if larger >= size}
                break
            self.memory_kind = memory.kind
        if self._device.type == "cuda" and VARIANTS[name].tolerance is EXACT:
            del predict
            timing.release_free_memory(self._device)
            strict = replace(self._workshop, allows_tf32=False)
            _, check.found_strict = self._evaluated(VARIANTS[name].predictor(self._model, strict))

    def _evaluated(self, predict: Predictor) -> tuple[dict[str, Any], list[Detections]]:
        """The accuracy on the validation images, and what was found on them."""
        found: list[Detections] = []

        def recorded(images: Sequence[np.ndarray]) -> list[Detections]:
            detections = predict(images)
            found.extend(detections)
            return detections

        return evaluation.evaluate(recorded, self._split, max_images=self._max_images), found

    def _batches(self, batch_size: int) -> list[list[np.ndarray]]:
        """Up to DISTINCT_BATCHES batches that go round the images."""
        count = min(DISTINCT_BATCHES, -(-len(self._images) // batch_size))
        return [
            [self._images[(i * batch_size + j) % len(self._images)] for j in range(batch_size)]
            for i in range(count)
        ]

    # --- timing, all arms interleaved ------------------------------------------------------------

    def time(self, batch_size: int, names: Sequence[str] | None = None) -> None:
        """Times every variant that fits at this batch size and appends a row for each.

        Batch sizes are timed apart, and the machine may be slower at one of them. So the first one
        of the baseline, the anchor, is in the rounds of all.

        Args:
            names: only these, and the baseline; all by default.
        """
        names = list(self.checks) if names is None else list(dict.fromkeys([BASELINE, *names]))
        fitting = [name for name in names if self._may_fit(name, batch_size)]
        together = self._timed_at(batch_size, fitting)
        for name in names:
            timed = together
            is_left_out = name in fitting and (name, batch_size) not in together.ms
            if is_left_out and self._may_fit(name, batch_size):
                timed = self._timed_alone(name, batch_size)
            self._made.append(name, batch_size, timed)

    def time_finalists(self, pairs: Sequence[Pair]) -> None:
        """Times arms of different batch sizes in the same rounds; see `final`. The one with the
        smallest batch size, which takes the least time and memory, runs twice."""
        if not pairs:
            return
        twice = min(pairs, key=lambda pair: pair[1])
        arms = [*pairs, second_self(twice)]
        self._drop_predictors(*(name for name, _ in arms))
        ms = self._timed_together(arms, "side by side").ms
        timed = [pair for pair in pairs if len(ms.get(pair, ()))]
        if len(timed) < 2:  # nothing is beside it
            return
        self.final = {pair: ms[pair] for pair in timed}
        if {twice, second_self(twice)} <= ms.keys():
            self.final_noise = noise_between(ms[twice], ms[second_self(twice)], self._seed)

    def _may_fit(self, name: str, batch_size: int) -> bool:
        check = self.checks[name]
        return not check.failure and batch_size not in check.out_of_memory

    def _timed_alone(self, name: str, batch_size: int) -> Timed:
        """For an arm that does not fit beside all others: the baseline is all there is beside it,
        or nothing where the two do not fit together."""
        self._drop_predictors()
        return self._timed_at(batch_size, list(dict.fromkeys((BASELINE, name))))

    def _timed_at(self, batch_size: int, names: Sequence[str]) -> Timed:
        """The arms beside the baseline's second self, where it is among them, and the anchor."""
        anchor = self._made.anchor = self._made.anchor or (BASELINE, batch_size)
        pairs = [(name, batch_size) for name in names]
        pairs += [second_self((BASELINE, batch_size))] if BASELINE in names else []
        pairs += [anchor] if pairs and anchor not in pairs else []
        return self._timed_together(pairs, f"batch size {batch_size}")

    def _drop_predictors(self, *kept: str) -> None:
        self._predictors = {
            name: predict for name, predict in self._predictors.items() if name in kept
        }
        timing.release_free_memory(self._device)

    def _timed_together(self, pairs: Sequence[Pair], label: str) -> Timed:
        """The arms of those pairs that fit into memory beside each other, with their times.

        Args:
            label: of these rounds in `processor_shares`.
        """
        left = list(pairs)
        while left:
            try:
                with bounded_host_memory(self._device):
                    arms = {pair: self._arm(pair) for pair in left}
                    times = self._times(arms, label)
                    found = {pair: arm.found for pair, arm in arms.items()}
                    return Timed(found, times, next(self._rounds_ids))
            except ArmFailedError as failed:  # go on with the others
                self._take_note(failed)
                left.remove(failed.arm)
            arms = {}  # they hold what is to be released
            self._drop_predictors(*(name for name, _ in left))
        return Timed()

    def _take_note(self, failed: ArmFailedError) -> None:
        """Memory that runs out is no failure: the arm may fit beside fewer others."""
        name, _ = failed.arm
        if failed.is_out_of_memory:
            return
        error = failed.__cause__
        if name.removesuffix(AGAIN) == BASELINE:  # without it there is nothing to compare
            raise error or failed
        failure = _failure(name, error)
        if name in self.checks:  # and no second self
            self.checks[name].failure = failure

    def _arm(self, pair: Pair) -> Arm:
        """An arm, whose predictor is built now if it was not before."""
        name, batch_size = pair
        if name not in self._predictors:
            variant = VARIANTS[name.removesuffix(AGAIN)]
            try:
                self._predictors[name] = variant.predictor(self._model, self._workshop)
            except Exception as error:
                raise ArmFailedError(pair, error) from error
        return Arm(pair, self._predictors[name], self._batches(batch_size))

    def _times(self, arms: Mapping[Pair, Arm], label: str) -> dict[Pair, np.ndarray]:
        named = {f"{name} {batch_size}": arm for (name, batch_size), arm in arms.items()}
        timing.warm_up(named, self._device)
        self.gpu_before = self.gpu_before or gpu_state(
            self._device
        )  # now its clocks are those of work
        with ProcessorShare(self._device) as processor:
            times = timing.measure_interleaved(
                named,
                rounds=self._num_iterations,
                warmup=0,
                device=self._device,
                seed=self._seed,
                budget_s=self._time_budget_s * len(arms),
            )
        if processor.share is not None:
            self.processor_shares[label] = min(processor.share, self.processor_shares.get(label, 1))
        return dict(zip(arms, times.values(), strict=True))

    def search(self, name: str, latency_budget_ms: float | None) -> list[int]:
        """Looks for the batch size that suits a variant best; every size tried appends rows, for
        the baseline, too. Returns the sizes."""

        def measure(batch_size: int) -> Measured | None:
            if (name, batch_size) not in self.times:
                log.info("Trying batch size %d with %s", batch_size, name)
                self._check_memory(name, batch_size)
                self.time(batch_size, [name])
            latest = (row for row in reversed(self.rows) if row["variant"] == name)
            row = next(row for row in latest if row["batch_size"] == batch_size)
            if row["latency_ms"] is None:
                return None
            return Measured(row["drift_free_img_s"], row["latency_ms"]["p90"])

        return list(batch_search.search(measure, latency_budget_ms))

    def _check_memory(self, name: str, batch_size: int) -> None:
        """What one call takes with no other variant in memory."""
        self._drop_predictors()
        check, memory = self.checks[name], HeldMemory(self._device)
        try:
            with bounded_host_memory(self._device):
                arm = self._arm((name, batch_size))
                check.peak_mib[batch_size] = memory.of_call(arm)
        except ArmFailedError as failed:
            self._take_note(failed)
            check.out_of_memory.add(batch_size)


def _failure(name: str, error: BaseException | None) -> str:
    """What a row says of an error that is not ours."""
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    failure = f"failed: {reason:.200}"
    log.warning("%s %s", name, failure)
    log.debug("%s", name, exc_info=error)
    return failure
