"""What a trained detector gets right and wrong: AP per class, confusions, and its worst misses.

    python phase1_training/evaluate_detector.py              # the newest best model, the demo data
    python phase1_training/evaluate_detector.py \\
        --model-path outputs/models/trained_model.pth --data-path /path/to/coco
    python phase1_training/evaluate_detector.py --split train --output /tmp/on_training_images

train.py writes the same for the best epoch when it validates. Writes evaluation.json (AP,
precision-recall curves at IoU 0.5, confusion matrix, the worst errors) and worst_misses.png.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so `python phase1_training/evaluate_detector.py` finds common/

from common import artifacts, cli, environment, paths
from common.cli import log
from common.model_and_data import load_model_and_data

WORKERS = 2


def evaluate_detector(
    model_path: Path | None,
    data_path: Path,
    split_name: str,
    *,
    workers: int,
    device_name: str,
    output: Path,
) -> list[Path]:
    """Evaluates a checkpoint (None: the newest best model) and returns the files written.

    Raises:
        UserError: an input is missing or damaged, or the classes of model and data differ.
    """
    from phase1_training import evaluation_files
    from phase1_training.validation import validate

    device = environment.select_device(device_name)
    log.info(environment.summary_line(str(device)))
    loaded, (split,) = load_model_and_data(model_path, data_path, device, [split_name])
    result = validate(loaded.model, split, device, workers=workers)
    scores = result.scores
    log.info(
        "%d images: map %.3f, map_50 %.3f, map_75 %.3f",
        *(scores["images"], scores["map"], scores["map_50"], scores["map_75"]),
    )
    inputs = [loaded.path, split.annotation_file]
    head = {
        **artifacts.provenance("evaluation", str(device), inputs),
        "architecture": loaded.architecture,
        "split": split_name,
    }
    return evaluation_files.write(output, head, split, scores, result.detections)


def build_parser() -> argparse.ArgumentParser:
    parser = cli.ArgumentParser(__doc__)
    parser.add_argument(
        "--model-path", type=Path, help="checkpoint (default: the newest best model)"
    )
    parser.add_argument("--data-path", type=Path, default=paths.DEMO, help="COCO-format folder")
    parser.add_argument(
        "--split", choices=("train", "val"), default="val", help="the images to evaluate on"
    )
    parser.add_argument(
        "--workers", type=cli.non_negative_int, default=WORKERS, help="threads that decode images"
    )
    cli.add_common_arguments(parser, output=paths.METRICS, output_help="folder of the report")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)

    def work() -> None:
        environment.seed_everything(args.seed)
        saved = evaluate_detector(
            args.model_path,
            args.data_path,
            args.split,
            workers=args.workers,
            device_name=args.device,
            output=args.output,
        )
        cli.finished(saved, "python -m common.report")

    return cli.run(work, args)


if __name__ == "__main__":
    raise SystemExit(main())
