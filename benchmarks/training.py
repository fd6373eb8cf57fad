"""Our training step against the loop of torchvision's references: speed, memory and mAP.

    python benchmarks/training.py                                            # the demo model
    python benchmarks/training.py --architecture fasterrcnn_resnet50_fpn --batch-size 2
    python benchmarks/training.py --map-epochs 3 --seeds 0,1,2               # adds the accuracy

Every arm trains the same model on the same images in the same order. A step is all that a person
pays for: decoding, a random flip, forward, backward and update; with --workers 0 nothing of it is
hidden. The steps of all arms alternate in random order within one run. A ResNet or MobileNet has
the frozen normalisation layers and untrained first stages that its pretrained weights come with,
but random values. On a GPU FP32 is strict: TF32 is off in every arm. Prints a table and writes it
with all figures to --output.
"""

import argparse
import contextlib
import functools
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so `python benchmarks/training.py` finds common/

from common import artifacts, cli, coco, environment, models, paths
from common.cli import log
from common.comparison import compare, interval_text
from phase1_training.options import LEARNING_RATE

if TYPE_CHECKING:
    import torch
    from torchvision.models.detection import FasterRCNN

    from phase1_training.batch_plan import PlannedBatch
    from phase1_training.recipe import Recipe

BASELINE = "references_fp32"
WARMUP_STEPS = 2
MEMORY_STEPS = 2  # the second one has the optimizer's state in memory, too
FINE_TUNED_STAGES = 3  # that torchvision trains of pretrained backbones


class Arms:
    """Builds the arms of a comparison, all from one model, plan of batches and recipe."""

    def __init__(
        self,
        build_model: Callable[[], "FasterRCNN"],
        split: coco.CocoSplit,
        recipe: "Recipe",
        device: "torch.device",
        workers: int,
        seed: int,
    ):
        self.build_model, self.split, self.recipe = build_model, split, recipe
        self.device, self.max_size = device, build_model().transform.max_size
        self.workers, self.seed = workers, seed
        self.steps_per_epoch = -(-len(split.records) // recipe.batch_size)

    def names(self) -> dict[str, str]:
        """The precision of every arm by its name, the baseline first."""
        from common.fastpath import native_amp

        half = native_amp(self.device)
        names = {BASELINE: "off", "ours_fp32": "off"}
        if half != "off":
            names |= {f"references_{half}": half, f"ours_{half}": half}
        return names

    def build(self, name: str) -> "Arm":
        amp = self.names()[name]
        recipe = replace(self.recipe, amp=amp)
        return (self._references if name.startswith("references") else self._ours)(recipe)

    def _plan(self, epoch: int) -> "list[PlannedBatch]":
        from phase1_training.batch_plan import plan_epoch

        return plan_epoch(
            self.split,
            batch_size=self.recipe.batch_size,
            min_sizes=self.recipe.min_sizes,
            max_size=self.max_size,
            seed=self.seed,
            epoch=epoch,
        )

    def _references(self, recipe: "Recipe") -> "Arm":
        from benchmarks.references_loop import ReferencesLoop

        plans = [self._plan(epoch) for epoch in range(1, recipe.epochs + 1)]
        batches = [planned.indices for plan in plans for planned in plan]
        loop = ReferencesLoop(
            self.build_model(),
            recipe,
            self.split,
            batches,
            device=self.device,
            workers=self.workers,
            steps_per_epoch=self.steps_per_epoch,
        )
        return Arm(loop.model, loop.step, contextlib.ExitStack())

    def _ours(self, recipe: "Recipe") -> "Arm":
        from phase1_training.distributed import Ranks
        from phase1_training.engine import Trainer
        from phase1_training.training_run import build_loader

        ranks = Ranks(0, 1, self.device)
        loader = build_loader(
            self.split,
            recipe,
            ranks,
            max_size=self.max_size,
            seed=self.seed,
            workers=self.workers,
        )
        trainer = Trainer(
            self.build_model().to(self.device),
            recipe,
            self.device,
            self.steps_per_epoch,
            ranks=ranks,
            folder=paths.METRICS,
        )

        def batches():
            for epoch in range(1, recipe.epochs + 1):
                trainer.start_epoch(epoch)
                yield from loader.epoch(epoch)

        coming, training = batches(), contextlib.ExitStack()
        training.enter_context(trainer.training())
        return Arm(trainer.model, lambda: trainer.train_step(next(coming)), training)


@dataclass(frozen=True)
class Arm:
    """A model in training; `step` reads the next batch and trains on it, `training.close()` ends
    it and leaves the model plain."""

    model: "FasterRCNN"
    step: Callable[[], object]
    training: contextlib.ExitStack


def compare_speed(arms: Arms, rounds: int) -> list[dict[str, Any]]:
    """Time and memory of a step of every arm; ratios above 1 are faster than the baseline."""
    from common import timing

    rows = {name: {"arm": name, **_memory(arms, name)} for name in arms.names()}
    running = {name: arms.build(name) for name in rows}
    steps = {name: arm.step for name, arm in running.items()}
    measured = timing.measure_interleaved(
        steps, rounds=rounds, warmup=WARMUP_STEPS, device=arms.device, seed=arms.seed
    )
    for name, row in rows.items():
        row["step_ms"] = timing.summarise(measured[name])
        row["images_per_s"] = 1000 * arms.recipe.batch_size / row["step_ms"]["p50"]
        row["speedup"] = compare(measured[BASELINE], measured[name]).as_json()
    return list(rows.values())


def _memory(arms: Arms, name: str) -> dict[str, Any]:
    """What a step of one arm takes at most, alone, beyond what is in use without it."""
    import torch

    from common import timing

    timing.release_free_memory(arms.device)
    if arms.device.type == "cuda":
        before = torch.cuda.memory_allocated(arms.device) / timing.MIB
    else:
        before = timing.resident_mib() or 0.0
    arm = arms.build(name)
    with timing.PeakMemory(arms.device) as peak:
        for _ in range(MEMORY_STEPS):
            arm.step()
    arm.training.close()
    return {"peak_memory_mib": None if peak.mib is None else peak.mib - before}


def compare_map(
    arms: Arms, val: coco.CocoSplit, epochs: int, seeds: Sequence[int]
) -> list[dict[str, Any]]:
    """mAP on the validation images after whole epochs, from each seed's own initial weights."""
    from common import evaluation

    found: dict[str, list[dict[str, float]]] = {name: [] for name in arms.names()}
    for seed in seeds:
        seeded = Arms(
            functools.partial(_seeded, arms.build_model, seed),
            arms.split,
            replace(arms.recipe, epochs=epochs),
            arms.device,
            arms.workers,
            seed,
        )
        steps = epochs * seeded.steps_per_epoch
        for name, runs in found.items():
            arm = seeded.build(name)
            for _ in cli.progress(range(steps), total=steps, label=f"{name}, seed {seed}"):
                arm.step()
            arm.training.close()
            predict = models.stock_predictor(arm.model.eval(), arms.device)
            scores = evaluation.evaluate(predict, val)
            runs.append({"seed": seed, "map": scores["map"], "map_50": scores["map_50"]})
            log.info("%s, seed %d: map %.4f", name, seed, scores["map"])
    return [{"arm": name, "runs": runs} for name, runs in found.items()]


def _seeded(build_model: "Callable[[], FasterRCNN]", seed: int) -> "FasterRCNN":
    environment.seed_everything(seed)
    return build_model()


def fine_tuning_form(
    architecture: str, num_classes: int, min_size: int | None, max_size: int | None
) -> "FasterRCNN":
    """A model of random values in the form that pretrained weights have."""
    from phase1_training.recipe import set_trainable_stages

    environment.seed_everything(0)
    model = models.build_model(architecture, num_classes, min_size=min_size, max_size=max_size)
    if architecture != models.DEMO:
        models.freeze_norms(model.backbone.body, eps=0.0 if "resnet50" in architecture else 1e-5)
        set_trainable_stages(model, FINE_TUNED_STAGES)
    return model


def table(speed: Sequence[dict[str, Any]], accuracy: Sequence[dict[str, Any]]) -> str:
    """Markdown: a row an arm; the mAP as mean and range over the seeds."""
    lines = [
        "| arm | step p50 / p90 (ms) | images/s | faster than the references | peak memory (MiB) |",
        "|---|---|---|---|---|",
    ]
    for row in speed:
        ratio = interval_text(row["speedup"]["ratio"], row["speedup"]["ci95"], "x")
        memory = "" if row["peak_memory_mib"] is None else f"{row['peak_memory_mib']:.0f}"
        lines.append(
            f"| {row['arm']} | {row['step_ms']['p50']:.0f} / {row['step_ms']['p90']:.0f} "
            f"| {row['images_per_s']:.2f} | {ratio} | {memory} |"
        )
    if accuracy:
        lines += ["", "| arm | val map, mean (range) over seeds | map_50 |", "|---|---|---|"]
    for row in accuracy:
        cells = []
        for key in ("map", "map_50"):
            values = [run[key] for run in row["runs"]]
            span = f"{min(values):.3f} to {max(values):.3f}"
            cells.append(f"{statistics.mean(values):.3f} ({span})")
        lines.append(f"| {row['arm']} | {' | '.join(cells)} |")
    return "\n".join(lines)


# --- command line -----------------------------------------------------------------------------


def build_parser() -> argparse.ArgumentParser:
    parser = cli.ArgumentParser(__doc__)
    parser.add_argument("--data-path", type=Path, default=paths.DEMO, help="COCO-format folder")
    parser.add_argument(
        "--architecture", choices=models.ARCHITECTURES, default=models.DEMO, help="to train"
    )
    parser.add_argument("--min-size", type=cli.positive_int, help="short side after the resize, px")
    parser.add_argument("--max-size", type=cli.positive_int, help="longest side after it, px")
    parser.add_argument("--batch-size", type=cli.positive_int, default=4, help="images per step")
    parser.add_argument("--optimizer", choices=tuple(LEARNING_RATE), help="default: as train.py")
    parser.add_argument("--rounds", type=cli.positive_int, default=20, help="steps of every arm")
    parser.add_argument(
        "--workers", type=cli.non_negative_int, default=0, help="loader processes of every arm"
    )
    parser.add_argument(
        "--map-epochs", type=cli.non_negative_int, default=0, help="also train for so many epochs"
    )
    parser.add_argument("--seeds", type=_seeds, default="0,1,2", help="of those trainings")
    cli.add_common_arguments(
        parser, output=paths.METRICS / "training_benchmark.json", output_help="JSON to write"
    )
    return parser


def _seeds(text: str) -> list[int]:
    return [cli.seed_number(part) for part in text.split(",")]


def plain_recipe(*, epochs: int, batch_size: int, optimizer: str, min_size: int) -> "Recipe":
    """What the references do, without what they do not have."""
    from phase1_training.recipe import Recipe

    return Recipe(
        epochs=epochs,
        batch_size=batch_size,
        accumulate=1,
        optimizer=optimizer,
        learning_rate=LEARNING_RATE[optimizer],
        momentum=0.9,
        weight_decay=0.0005,
        schedule="cosine",
        step_size=3,
        gamma=0.1,
        warmup_steps=100,
        clip_norm=0.0,
        ema_decay=0.0,
        trainable_stages=None,
        patience=0,
        amp="off",
        min_sizes=(min_size,),
        crop_probability=0.0,
        color_jitter=0.0,  # the references' own recipe flips only
    )


def _run(args: argparse.Namespace) -> None:
    import torch

    device = environment.select_device(args.device)
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    train, val = coco.load_train_and_val(args.data_path)
    steps = -(-len(train.records) // args.batch_size)
    optimizer = args.optimizer or ("adamw" if args.architecture == models.DEMO else "sgd")
    min_size, _ = models.input_size(args.architecture, args.min_size, args.max_size)
    build = functools.partial(
        fine_tuning_form,
        args.architecture,
        len(train.class_names) + 1,
        args.min_size,
        args.max_size,
    )
    recipe = plain_recipe(
        epochs=-(-(args.rounds + WARMUP_STEPS) // steps),
        batch_size=args.batch_size,
        optimizer=optimizer,
        min_size=min_size,
    )
    log.info(environment.summary_line(str(device)))
    arms = Arms(build, train, recipe, device, args.workers, args.seed)
    speed = compare_speed(arms, args.rounds)
    accuracy = compare_map(arms, val, args.map_epochs, args.seeds) if args.map_epochs else []
    text = table(speed, accuracy)
    log.info("%s", text)
    inputs = [train.annotation_file, val.annotation_file]
    artifacts.write_json(
        args.output,
        {
            **artifacts.provenance("training_benchmark", str(device), inputs),
            "architecture": args.architecture,
            "batch_size": args.batch_size,
            "workers": args.workers,
            "rounds": args.rounds,
            "baseline": BASELINE,
            "speed": speed,
            "accuracy": accuracy,
            "table": text,
        },
    )
    cli.finished([args.output], None)


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return cli.run(lambda: _run(args), args)


if __name__ == "__main__":
    raise SystemExit(main())
