"""The measurement behind mixed_precision: each arm's memory alone, its steps, then inference."""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from common import cli, evaluation, timing
from common.cli import UserError, log
from common.coco import CocoSplit, read_image
from common.comparison import MIN_ROUNDS
from common.gpu_state import gpu_state
from phase2_optimization.amp_arm import Precision, TrainingArm, precisions, usual_amp
from phase2_optimization.amp_batches import Batch, training_batches
from phase2_optimization.amp_inference import describe, time_inference
from phase2_optimization.amp_reading import FINAL_LOSS_STEPS
from phase2_optimization.memory_use import bounded_host_memory

if TYPE_CHECKING:
    from torchvision.models.detection import FasterRCNN

BASELINE = "fp32"
AGAIN = "fp32 (again)"  # the A/A arm: any difference from the baseline is noise
WARMUP_STEPS = {"cuda": 5, "mps": 5, "cpu": 1}  # a CPU has made one to see the peak memory
MAX_BATCHES = 32  # different batches of a seed; a longer run goes through them again
EVALUATION_BATCH = 4
INFERENCE_IMAGES, INFERENCE_ROUNDS = 8, 30
SLOW = "skipped: bfloat16 is emulated on this CPU, which is slow; --seeds 3 runs everything"


@dataclass(frozen=True)
class Settings:
    """What is compared. The first seed is timed, the others only train.

    Attributes:
        steps: timed steps of each arm.
        seeds: of the order of the images and of the sampled proposals; the start is the same.
        spare_emulated: leave out what takes long where bfloat16 is emulated: AMP trains with the
            first seed only, and autocast around the whole model not at all.
    """

    steps: int
    batch_size: int
    learning_rate: float
    max_images: int
    seeds: tuple[int, ...]
    spare_emulated: bool


@dataclass
class ArmRecord:
    """What is known of an arm.

    Attributes:
        failure: why it was not measured, or not to the end; "" where it was.
        step_ms: of the timed steps; the same place is the same batch in every arm.
        runs: one per seed it has trained with.
    """

    precision: Precision
    failure: str = ""
    peak_mib: float | None = None
    step_ms: list[float] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)


class ArmOutOfMemoryError(Exception):
    """An arm did not fit into memory; `str(error)` is its name."""


class AmpComparison:
    """Trains one model in every precision, always from the same start.

    Attributes:
        records: every precision by name, FP32 first, also those that cannot run.
        again_ms: the times of FP32's second arm, which tells the noise.
        inference: a row for each way of inference, see `amp_inference.time_inference`.
        usual_amp: the name of the AMP precision that suits the device.
        gpu_before, gpu_after: the state of the GPU when it was warm and after the last timed step,
            both at work; None before, and where there is no GPU.
    """

    def __init__(
        self,
        model: "FasterRCNN",
        train: CocoSplit,
        val: CocoSplit,
        device: torch.device,
        settings: Settings,
    ):
        self.device, self.settings, self.val = device, settings, val
        self.records = {name: ArmRecord(p) for name, p in precisions(device).items()}
        self.again_ms: list[float] = []
        self.inference: list[dict[str, Any]] = []
        self.usual_amp = usual_amp(device)
        self.memory_kind = ""
        self.gpu_before: dict[str, Any] | None = None
        self.gpu_after: dict[str, Any] | None = None
        self._model, self._train = model, train
        for record in self.records.values():
            if record.precision.unavailable:
                record.failure = f"unavailable: {record.precision.unavailable}"
            elif settings.spare_emulated and record.precision.emulated and record.precision.stock:
                record.failure = SLOW

    @property
    def warmup_steps(self) -> int:
        return WARMUP_STEPS[self.device.type]

    # --- memory -----------------------------------------------------------------------------------

    def check(self) -> None:
        """Makes one step of each arm on the largest batch, with no other arm in memory.

        Raises:
            UserError: FP32 does not fit.
        """
        wanted = self.settings
        seeds = len(wanted.seeds)
        log.info(
            "Each precision makes %d steps at batch size %d, %d to warm up and %d timed%s",
            *(self.warmup_steps + wanted.steps, wanted.batch_size),
            *(self.warmup_steps, wanted.steps),
            f"; the same with {_more_seeds(seeds - 1)}, not timed" if seeds > 1 else "",
        )
        largest = max(self._batches(wanted.seeds[0]), key=lambda b: b.images.numel())
        for name, record in self.records.items():
            if record.failure:
                log.info("%-10s%s", name, record.failure)
                continue
            log.info("%-10s%s", name, record.precision.description)
            timing.release_free_memory(self.device)
            try:
                with _naming(name), bounded_host_memory(self.device):
                    record.peak_mib = self._peak_of_one_step(name, largest)
            except ArmOutOfMemoryError:
                self._drop(name)
            except NotImplementedError as error:  # an operation the device lacks in this dtype
                record.failure = f"unavailable: {str(error).splitlines()[0]}"
        timing.release_free_memory(self.device)

    def _peak_of_one_step(self, name: str, batch: Batch) -> float | None:
        with timing.PeakMemory(self.device) as memory, self._arm(name, 0, [batch]) as arm:
            arm.step()
        self.memory_kind = memory.kind
        return memory.mib

    def _drop(self, name: str) -> None:
        if name == BASELINE:
            raise UserError(
                f"--batch-size {self.settings.batch_size}",
                f"the FP32 training does not fit into the memory of {self.device}",
                "use a smaller --batch-size, a model of a smaller --min-size or another --device",
            )
        log.warning("%s: out of memory; the others go on", name)
        if name in self.records:
            self.records[name].failure = "oom"

    # --- training ---------------------------------------------------------------------------------

    def train(self) -> None:
        """Trains every arm with every seed and times the steps of the first one."""
        first, *others = self.settings.seeds
        with bounded_host_memory(self.device):
            self._train_in_turns(first)
            for seed in others:
                batches = self._batches(seed)
                for name, record in self.records.items():
                    spared = self.settings.spare_emulated and record.precision.emulated
                    if not record.failure and not spared:
                        self._train_alone(name, seed, batches)

    def _train_in_turns(self, seed: int) -> None:
        batches = self._batches(seed)
        names = [name for name, record in self.records.items() if not record.failure] + [AGAIN]
        arms: dict[str, TrainingArm] = {}
        while not arms:
            try:
                with contextlib.ExitStack() as stack:
                    for name in names:
                        with _naming(name):
                            arms[name] = stack.enter_context(self._arm(name, seed, batches))
                    self._time(arms, seed)
            except ArmOutOfMemoryError as error:  # from the start, without it
                self._drop(str(error))
                self._times_of(str(error)).clear()  # of rounds that the others make again
                names.remove(str(error))
                arms.clear()
                timing.release_free_memory(self.device)
        for name in names:
            if name in self.records:
                self._judge(name, seed, arms[name])

    def _time(self, arms: dict[str, TrainingArm], seed: int) -> None:
        """Lets the arms take turns step by step. Times are kept part by part: a run may be
        stopped, and only within a part of enough rounds is it seen that the machine slept."""
        steps = {name: functools.partial(_named_step, name, arm) for name, arm in arms.items()}
        for name in arms:
            self._times_of(name).clear()
        for _ in range(self.warmup_steps):
            for step in steps.values():
                step()
        self.gpu_before = gpu_state(self.device)  # here and below with the clocks of work
        parts = _parts(self.settings.steps)
        for number in cli.progress(range(len(parts)), total=len(parts), label="timed part"):
            measured = timing.measure_interleaved(
                steps,
                rounds=parts[number],
                warmup=0,
                device=self.device,
                seed=(seed + number) % 2**32,
            )
            for name, ms in measured.items():
                self._times_of(name).extend(ms.tolist())
            self.gpu_after = gpu_state(self.device)

    def _times_of(self, name: str) -> list[float]:
        return self.again_ms if name == AGAIN else self.records[name].step_ms

    def _train_alone(self, name: str, seed: int, batches: Sequence[Batch]) -> None:
        steps = self.warmup_steps + self.settings.steps
        try:
            with _naming(name):
                with self._arm(name, seed, batches) as arm:
                    for _ in cli.progress(range(steps), total=steps, label=f"{name}, seed {seed}"):
                        arm.step()
                self._judge(name, seed, arm)
        except ArmOutOfMemoryError:
            self._drop(name)

    def _judge(self, name: str, seed: int, arm: TrainingArm) -> None:
        """Notes what a trained arm has learnt: its losses, and mAP of its weights in FP32."""
        losses = arm.losses()
        last = [loss for loss in losses[-FINAL_LOSS_STEPS:] if loss is not None]
        complete = len(last) == len(losses[-FINAL_LOSS_STEPS:])
        scores = evaluation.evaluate(
            arm.predictor(),
            self.val,
            batch_size=EVALUATION_BATCH,
            max_images=self.settings.max_images,
        )
        run = {
            "seed": seed,
            "final_loss": sum(last) / len(last) if complete else None,
            "map": scores["map"],
            "map_50": scores["map_50"],
            "skipped_steps": arm.skipped_steps(),
            "loss": losses,
        }
        self.records[name].runs.append(run)

    def _arm(self, name: str, seed: int, batches: Sequence[Batch]) -> TrainingArm:
        precision = self.records[BASELINE if name == AGAIN else name].precision
        rate = self.settings.learning_rate
        return TrainingArm(self._model, precision, batches, rate, self.device, seed)

    def _batches(self, seed: int) -> list[Batch]:
        transform = self._model.transform
        batches = training_batches(
            self._train,
            self.settings.batch_size,
            min(self.settings.steps + self.warmup_steps, MAX_BATCHES),
            min_size=transform.min_size[-1],
            max_size=transform.max_size,
            seed=seed,
        )
        on_cuda = self.device.type == "cuda"
        return [batch.pin_memory() for batch in batches] if on_cuda else batches

    # --- inference --------------------------------------------------------------------------------

    def time_inference(self) -> None:
        """Times half precision against FP32, one image at a time: as videos are detected, and with
        torchvision's own forward pass."""
        val = self.val.records[:INFERENCE_IMAGES]
        images = [read_image(r.path, (r.width, r.height)) for r in val]
        seed = self.settings.seeds[0] % 2**32
        for name in (self.usual_amp, "amp_stock"):
            record = self.records.get(name)
            if not record:
                continue
            if record.precision.unavailable or record.failure == SLOW:
                row = {**describe(record.precision), "status": record.failure}
            else:
                given = (self._model, record.precision, images, self.device)
                row = time_inference(*given, INFERENCE_ROUNDS, seed)
            self.inference.append(row)


def _more_seeds(count: int) -> str:
    return "1 more seed" if count == 1 else f"{count} more seeds"


def _parts(steps: int) -> list[int]:
    """Steps in parts of about equal size, at least MIN_ROUNDS each if there are as many."""
    count = max(1, steps // MIN_ROUNDS)
    return [(steps + place) // count for place in range(count)]


def _named_step(name: str, arm: TrainingArm) -> None:
    with _naming(name):
        arm.step()


@contextlib.contextmanager
def _naming(name: str) -> Iterator[None]:
    """Tells which arm it was that ran out of memory."""
    try:
        yield
    except Exception as error:
        if not timing.is_out_of_memory(error):
            raise
        raise ArmOutOfMemoryError(name) from None
