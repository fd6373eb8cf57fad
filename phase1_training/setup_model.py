"""Builds a detector for a data set, says how large and how costly it is, and saves it.

    python phase1_training/setup_model.py                                   # the demo model
    python phase1_training/setup_model.py --architecture fasterrcnn_resnet50_fpn --weights coco \\
        --data-path /path/to/coco
    python phase1_training/setup_model.py --list                            # compare all of them

Writes initial_model.pth into --output; train from it with
`python phase1_training/train.py --model-path outputs/models/initial_model.pth`.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so `python phase1_training/setup_model.py` finds common/

from common import artifacts, cli, coco, environment, models, paths
from common.cli import UserError, log

if TYPE_CHECKING:
    import torch
    from torchvision.models.detection import FasterRCNN

IMAGE_SIZE = (480, 640)  # height and width of the image that GFLOPs are counted on


def describe(model: "FasterRCNN", device: "torch.device") -> dict[str, float | int | list[int]]:
    """Size and cost of a model.

    Returns:
        `parameters_million`, `trainable_million`, `weights_mib`, `input_size` [height, width] that
        an image of IMAGE_SIZE is resized to, and `gflops` of one such image. One multiplication
        with its addition counts as two operations; what lies behind the proposals depends on how
        many there are, so random weights give an upper figure.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    parameters = list(model.parameters())
    image = torch.rand(3, *IMAGE_SIZE, device=device)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model.to(device).eval()([image])
    size = models.resized_size(*IMAGE_SIZE, model.transform.min_size[-1], model.transform.max_size)
    return {
        "parameters_million": sum(p.numel() for p in parameters) / 1e6,
        "trainable_million": sum(p.numel() for p in parameters if p.requires_grad) / 1e6,
        "weights_mib": sum(t.nbytes for t in model.state_dict().values()) / 2**20,
        "input_size": list(size),
        "gflops": counter.get_total_flops() / 1e9,
    }


def setup(
    architecture: str,
    weights: str,
    class_names: Sequence[str],
    category_ids: Sequence[int],
    min_size: int | None,
    max_size: int | None,
    output: Path,
    device: "torch.device",
) -> Path:
    """Builds, describes and saves one model; returns the checkpoint's path."""
    model = models.build_model(
        architecture, len(class_names) + 1, weights=weights, min_size=min_size, max_size=max_size
    )
    facts = describe(model, device)
    _log_row("architecture", "parameters", "weights", "input", "cost")
    _log_facts(architecture, facts)
    names = ", ".join(class_names)
    log.info("%d classes and the background: %s", len(class_names), f"{names:.300}")
    path = output / "initial_model.pth"
    models.save_model(
        path,
        model.cpu(),
        architecture=architecture,
        class_names=class_names,
        category_ids=category_ids,
        summary={
            **artifacts.provenance("initial_model", str(device)),
            "architecture": architecture,
            "weights": weights,
            **facts,
        },
    )
    return path


def compare_all(num_classes: int, device: "torch.device") -> None:
    """Prints size and cost of every architecture, with random weights."""
    _log_row("architecture", "parameters", "weights", "input", "cost")
    for architecture in models.ARCHITECTURES:
        _log_facts(architecture, describe(models.build_model(architecture, num_classes), device))


def _log_facts(architecture: str, facts: dict) -> None:
    height, width = facts["input_size"]
    _log_row(
        architecture,
        f"{facts['parameters_million']:.2f} M",
        f"{facts['weights_mib']:.1f} MiB",
        f"{height}x{width}",
        f"{facts['gflops']:.1f} GFLOP",
    )


def _log_row(*cells: str) -> None:
    log.info("%-40s %12s %12s %10s %14s", *cells)


def build_parser() -> argparse.ArgumentParser:
    parser = cli.ArgumentParser(__doc__)
    parser.add_argument(
        "--architecture", choices=models.ARCHITECTURES, default=models.DEMO, help="what to build"
    )
    parser.add_argument(
        "--weights",
        choices=models.WEIGHTS,
        default="none",
        help="coco: detector trained on COCO; imagenet: backbone only; none: random",
    )
    parser.add_argument(
        "--data-path", type=Path, default=paths.DEMO, help="COCO-format folder: gives the classes"
    )
    parser.add_argument(
        "--num-classes",
        type=cli.positive_int,
        help="classes including the background, instead of those of --data-path",
    )
    parser.add_argument("--min-size", type=cli.positive_int, help="short side after the resize, px")
    parser.add_argument("--max-size", type=cli.positive_int, help="longest side after it, px")
    parser.add_argument("--list", action="store_true", help="compare all architectures, save none")
    cli.add_common_arguments(parser, output=paths.MODELS, output_help="folder of the checkpoint")
    return parser


def _run(args: argparse.Namespace) -> None:
    if args.num_classes == 1:
        raise UserError("--num-classes 1", "the background alone", "count it in: 2 or more")
    device = environment.select_device(args.device)
    environment.seed_everything(args.seed)
    log.info(environment.summary_line(str(device)))
    height, width = IMAGE_SIZE
    log.info("Cost of one %dx%d image (two operations per multiply-add):", width, height)
    if args.list:
        compare_all(args.num_classes or 91, device)
        return
    if args.num_classes:
        category_ids: Sequence[int] = range(1, args.num_classes)
        class_names: Sequence[str] = [f"class_{index}" for index in category_ids]
    else:
        split = coco.load_split(args.data_path, "train")
        class_names, category_ids = split.class_names, split.category_ids
    path = setup(
        args.architecture,
        args.weights,
        class_names,
        category_ids,
        args.min_size,
        args.max_size,
        args.output,
        device,
    )
    if args.num_classes:  # no data set is known to have these classes
        cli.finished([path], None)
        return
    words = ["python", "phase1_training/train.py", "--model-path", paths.display(path)]
    if args.data_path != paths.DEMO:
        words += ["--data-path", str(args.data_path)]
    cli.finished([path], shlex.join(words))


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return cli.run(lambda: _run(args), args)


if __name__ == "__main__":
    raise SystemExit(main())
