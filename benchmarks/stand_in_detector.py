"""A stand-in for a trained detector of any architecture, and data it finds its own boxes on.

    python benchmarks/stand_in_detector.py --architecture fasterrcnn_resnet50_fpn --output STAND_IN
    python phase2_optimization/benchmark_inference.py --model-path STAND_IN/model.pth \\
        --data-path STAND_IN/data --batch-sizes 1

Training a ResNet takes days on a CPU, and where there is no network there are no pretrained
weights. The time of an inference does not depend on the weights, as long as as many proposals go
through the heads as usual. This detector has random weights, normalisation statistics from real
images (so that values keep their size) and heads scaled until scores spread. The annotations are
the detections of its own stock FP32 inference, the best ten of an image. So mAP tells how far a
faster way of running it departs from that. FP32 itself scores less than 1, as its detections after
the best ten count as false ones. Random weights are the harder case: nothing has taught them to be
robust.
"""

import argparse
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so `python benchmarks/stand_in_detector.py` finds common/

from common import artifacts, cli, models, paths
from common.cli import log

if TYPE_CHECKING:
    from common.coco import ImageRecord

IMAGES = 12
CLASSES = 90  # of COCO
SCENES = 4  # that statistics are taken from
BEST = 10  # detections of an image that become its annotations


def make_stand_in(
    architecture: str, data_path: Path | None, images: int, seed: int, output: Path
) -> None:
    """Writes `output`/model.pth and a COCO data set in `output`/data."""
    import torch
    from torchvision.ops.misc import FrozenBatchNorm2d

    from common.coco import read_image, training_split
    from tests.random_detectors import random_detector

    split = training_split(data_path or paths.DEMO, "val")
    halves = {"val": split.records[:images], "train": split.records[images : 2 * images]}
    scenes = [read_image(r.path, (r.width, r.height)) for r in halves["val"]]
    min_size, max_size = models.SIZES[architecture]
    model = random_detector(
        architecture,
        num_classes=CLASSES + 1,
        min_size=min_size,
        max_size=max_size,
        bounded=False,
        seed=seed,
        scenes=scenes[:SCENES],
    )
    if architecture == "fasterrcnn_resnet50_fpn":  # as its pretrained weights come
        _freeze_norms_with_their_values(model, FrozenBatchNorm2d)
    names = [f"class {number}" for number in range(1, CLASSES + 1)]
    ids = list(range(1, CLASSES + 1))
    models.save_model(
        output / "model.pth",
        model,
        architecture=architecture,
        class_names=names,
        category_ids=ids,
        summary={"stand_in": True},
    )
    categories = [{"id": i, "name": name} for i, name in zip(ids, names, strict=True)]
    predict = models.stock_predictor(model, torch.device("cpu"))
    for name, records in halves.items():
        content = _annotated(predict, name, records, output / "data" / "images")
        content["categories"] = categories
        annotations = output / "data" / "annotations" / f"instances_{name}.json"
        artifacts.write_json(annotations, content)
        log.info("%s: %d images, %d boxes", name, len(records), len(content["annotations"]))
    words = ["python", "phase2_optimization/benchmark_inference.py"]
    words += ["--model-path", str(output / "model.pth"), "--data-path", str(output / "data")]
    cli.finished([output / "model.pth", output / "data"], shlex.join(words))


def _annotated(
    predict: models.Predictor, name: str, records: Sequence["ImageRecord"], folder: Path
) -> dict[str, list]:
    """COCO content of copies of the images, annotated with what is found in them."""
    from common.coco import read_image

    folder.mkdir(parents=True, exist_ok=True)
    content: dict[str, list] = {"images": [], "annotations": []}
    for number, record in enumerate(records, 1):
        file = folder / f"{name}_{number}{record.path.suffix}"
        shutil.copyfile(record.path, file)
        size = {"width": record.width, "height": record.height}
        content["images"].append({"id": number, "file_name": file.name, **size})
        (found,) = predict([read_image(record.path, (record.width, record.height))])
        for box, label in zip(found.boxes_xyxy[:BEST], found.labels[:BEST], strict=True):
            x1, y1, x2, y2 = (float(side) for side in box)
            annotation = {
                "id": len(content["annotations"]) + 1,
                "image_id": number,
                "category_id": int(label),
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": (x2 - x1) * (y2 - y1),
                "iscrowd": 0,
            }
            content["annotations"].append(annotation)
    return content


def _freeze_norms_with_their_values(model, frozen: type) -> None:
    import torch

    for parent in list(model.modules()):
        for name, norm in parent.named_children():
            if isinstance(norm, torch.nn.BatchNorm2d):
                values = norm.state_dict()
                values.pop("num_batches_tracked")
                replacement = frozen(norm.num_features, norm.eps)
                replacement.load_state_dict(values)
                setattr(parent, name, replacement)


def build_parser() -> argparse.ArgumentParser:
    parser = cli.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--architecture",
        choices=models.ARCHITECTURES,
        default="fasterrcnn_mobilenet_v3_large_fpn",
        help="of the detector",
    )
    parser.add_argument("--data-path", type=Path, help="images (default: the demo data)")
    parser.add_argument("--images", type=cli.positive_int, default=IMAGES, help="of each split")
    cli.add_common_arguments(parser, output=Path("stand_in"), output_help="folder to write")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return cli.run(
        lambda: make_stand_in(
            args.architecture, args.data_path, args.images, args.seed, args.output
        ),
        args,
    )


if __name__ == "__main__":
    sys.exit(main())
