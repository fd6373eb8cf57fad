"""What finds the objects: a PyTorch checkpoint, an exported ONNX file, or recorded detections."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from common import cli, environment, paths
from common.cli import UserError, log

if TYPE_CHECKING:
    import numpy as np

    from common.models import Detections, LoadedModel
    from common.onnx_detector import OnnxDetector

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
BATCH_SIZE = 4  # enough to keep a GPU busy, few enough to answer Ctrl-C soon


@dataclass(frozen=True)
class Backend:
    """A detector for video.

    Attributes:
        detect: uint8 RGB images (H, W, 3), and their frame numbers in the input from 0 -> boxes,
            scores and labels from 1 of each; called from `workers` threads at a time.
        class_names, category_ids: of the labels from 1.
        device: "cpu", "cuda:0", ...: where it runs.
        precision: of the networks, for the report.
        workers: batches to detect at a time, unless asked for another number.
        file: what it was made of.
        max_proposals: of the box head, where they are fewer than the model's own.
        may_resume: whether detections are worth keeping for a run that is stopped.
    """

    detect: "Callable[[Sequence[np.ndarray], Sequence[int]], list[Detections]]"
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    device: str = "cpu"
    precision: str = "of the file"
    workers: int = 1
    file: Path | None = None
    max_proposals: int | None = None
    may_resume: bool = True


def add_detector_arguments(parser: argparse.ArgumentParser, *, recorded: bool = True) -> None:
    """Adds --model-path or --detections with --class-names, --batch-size, --precision and
    --max-proposals.

    Args:
        recorded: with --detections and --class-names, which are of one video.
    """
    group = parser.add_argument_group("detector")
    source = group.add_mutually_exclusive_group()
    source.add_argument(
        "--model-path",
        type=Path,
        help="checkpoint or .onnx file (default: outputs/models/best_model.pth)",
    )
    if recorded:
        source.add_argument(
            "--detections", type=Path, help="MOT detection file to use instead of a model"
        )
        group.add_argument(
            "--class-names",
            type=_class_names,
            metavar="ID=NAME,...",
            help="what classes of --detections are called, which has their ids only",
        )
    else:
        parser.set_defaults(detections=None, class_names=None)
    group.add_argument(
        "--batch-size", type=cli.positive_int, default=BATCH_SIZE, help="frames for each inference"
    )
    group.add_argument(
        "--precision",
        choices=PRECISIONS,
        default=PRECISIONS[0],
        help="of the networks; boxes are computed in FP32. auto: half where the device has it",
    )
    group.add_argument(
        "--max-proposals",
        type=cli.positive_int,
        help="regions for the box head to look at (default: the model's own number, often 1000)",
    )


def _class_names(text: str) -> dict[int, str]:
    """`1=person, 3=car` -> {1: "person", 3: "car"}; no id and no name twice."""
    found: dict[int, str] = {}
    for word in cli.names(text):
        id_text, _, name = (part.strip() for part in word.partition("="))
        try:
            class_id = int(id_text)
        except ValueError:
            name = ""
        if not name:
            raise argparse.ArgumentTypeError(f"{word!r} is not ID=NAME, for instance 3=car")
        if class_id in found or name in found.values():
            raise argparse.ArgumentTypeError(f"{word!r}: its id or its name is there twice")
        found[class_id] = name
    return found


def is_exported(model_path: Path | None) -> bool:
    return model_path is not None and model_path.suffix.lower() == ".onnx"


def load_backend(
    model_path: Path | None,
    detections: Path | None,
    device: str,
    precision: str,
    max_proposals: int | None = None,
    class_names: Mapping[int, str] | None = None,
) -> Backend:
    """Makes the detector that was asked for; without a file, of phase 1's best model.

    Args:
        model_path: a checkpoint, or a file that ends in .onnx.
        detections: MOT detection text, instead of a model.
        device: "auto", "cpu", "cuda", ...
        precision: one of PRECISIONS, for checkpoints.
        max_proposals: of the box head, for checkpoints; None leaves the model's own number.
        class_names: of the ids in `detections`.

    Raises:
        UserError: an option does not fit the kind of detector, a file is missing or damaged, or
            the device or precision is not there.
    """
    if max_proposals and (detections or is_exported(model_path)):
        what = "recorded detections have none" if detections else "an ONNX file has its own"
        raise UserError(f"--max-proposals {max_proposals}", what, "leave it out")
    if class_names and not detections:
        raise UserError("--class-names", "a model names its classes itself", "leave it out")
    if detections:
        return _recorded(detections, class_names or {})
    if model_path and is_exported(model_path):
        return _exported(model_path, device, precision)
    from common.models import limit_proposals, load_model, proposals_of

    chosen = environment.select_device(device)
    log.info(environment.summary_line(str(chosen)))
    loaded = load_model(model_path, chosen)
    if max_proposals and max_proposals < proposals_of(loaded.model):
        limit_proposals(loaded.model, max_proposals)
    else:
        max_proposals = None
    return replace(of_model(loaded, precision), max_proposals=max_proposals)


def of_model(loaded: "LoadedModel", precision: str) -> Backend:
    """A fast copy of a PyTorch model, which stays as it is.

    Args:
        precision: one of PRECISIONS.
    """
    from phase3_tracking import pipeline

    predict, device, dtype = pipeline.network(loaded.model, precision)
    return Backend(
        lambda images, _: predict(images),
        loaded.class_names,
        loaded.category_ids,
        device,
        dtype,
        pipeline.default_workers(device),
        loaded.path,
    )


def of_onnx(detector: "OnnxDetector", path: Path) -> Backend:
    """An ONNX file that is loaded already.

    One batch at a time, unless `VideoDetector` is told another number of workers: on a CPU ONNX
    Runtime spreads a batch over all cores itself, and on CUDA a second batch would need the memory
    of the first once more, for a gain that nobody has measured.
    """
    from common.models import Detections

    return Backend(
        lambda images, _: [Detections(*found[:3]) for found in detector(images)],
        tuple(detector.class_names),
        tuple(detector.metadata["category_ids"]),
        "cuda" if detector.provider.startswith("CUDA") else "cpu",
        file=path,
    )


def _exported(path: Path, device: str, precision: str) -> Backend:
    from common.onnx_detector import PROVIDERS, OnnxDetector

    if device not in PROVIDERS:
        remedy = f"use --device {', '.join(PROVIDERS)}, or a checkpoint"
        raise UserError(f"--device {device}", "not for ONNX files", remedy)
    if precision != PRECISIONS[0]:
        remedy = "leave it out, or give the checkpoint"
        raise UserError(f"--precision {precision}", "an ONNX file has its own", remedy)
    detector = OnnxDetector(path, device)
    log.info("Model: %s in ONNX Runtime, %s", paths.display(path), detector.provider)
    return of_onnx(detector, path)


def _recorded(path: Path, class_names: Mapping[int, str]) -> Backend:
    from phase3_tracking.recorded_detections import RecordedDetections

    recorded = RecordedDetections(path, class_names)
    return Backend(
        lambda _, numbers: [recorded.of_frame(number + 1) for number in numbers],
        recorded.class_names,
        recorded.category_ids,
        file=path,
        may_resume=False,
    )
