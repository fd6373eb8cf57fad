"""Runs an exported detector over images: does it load, where does it run, how fast, is it right?

    python phase4_deployment/test_onnx.py --onnx-path outputs/deployment/model.onnx
    python phase4_deployment/test_onnx.py --onnx-path outputs/deployment/model.onnx \\
        --test-images test_data/ --model-path outputs/models/best_model.pth

With --model-path every image's detections are compared with those of the PyTorch checkpoint.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so `python phase4_deployment/test_onnx.py` finds common/

from common import artifacts, cli, environment, paths
from common.cli import UserError, log
from phase4_deployment import parity

if TYPE_CHECKING:
    import numpy as np

    from common.onnx_detector import OnnxDetector

MAX_IMAGES = 50
WARMUP_RUNS = 2


def try_onnx(
    onnx_path: Path,
    test_images: Path | None,
    model_path: Path | None,
    *,
    max_images: int,
    device: str,
    output: Path,
) -> None:
    """Loads the file, runs it over the images one by one, and writes onnx_test.json.

    Raises:
        UserError: a file is missing or damaged, the device cannot be used, or the detections
            differ from the checkpoint's.
    """
    from common import timing

    detector = _load(onnx_path, device)
    log.info("Provider: %s", detector.provider)
    log.info(
        "Model:    %s, %d classes", detector.metadata["architecture"], len(detector.class_names)
    )
    images = _read_images(test_images, max_images)
    latency_ms, found = _time_each(detector, images)
    summary = timing.summarise(latency_ms)
    log.info("Images:   %d, %d detections", len(images), found)
    log.info(
        "Latency:  p50 %.1f, p90 %.1f, p99 %.1f ms", *(summary[k] for k in ("p50", "p90", "p99"))
    )
    on_gpu = detector.provider == "CUDAExecutionProvider"
    ran_on = str(environment.select_device("auto" if on_gpu else "cpu"))
    report = {
        **artifacts.provenance("onnx_test", ran_on, [onnx_path]),
        "provider": detector.provider,
        "images": len(images),
        "detections": found,
        "latency_ms": summary,
        "parity": _compare(detector, images, model_path) if model_path else None,
    }
    artifacts.write_json(output / "onnx_test.json", report)
    if report["parity"] and not report["parity"]["holds"]:
        text = parity.describe(report["parity"])
        raise UserError(onnx_path, f"differs from {model_path}: {text}", "export it again")
    cli.finished([output / "onnx_test.json"], "python phase4_deployment/export_all.py")


def _load(onnx_path: Path, device: str) -> "OnnxDetector":
    from common.onnx_detector import PROVIDERS, OnnxDetector

    if device not in PROVIDERS:
        raise UserError(f"--device {device}", "not supported", f"use one of {', '.join(PROVIDERS)}")
    return OnnxDetector(onnx_path, device)


def _read_images(folder: Path | None, max_images: int) -> "list[np.ndarray]":
    """uint8 RGB images of a folder, or of the demo data's val split."""
    from common.coco import load_split, read_image
    from phase4_deployment.package.picture_results import IMAGE_SUFFIXES

    if folder is None:
        records = load_split(paths.DEMO, "val").records[:max_images]
        return [read_image(record.path) for record in records]
    if not folder.is_dir():
        raise UserError(folder, "no such folder", "check the path given with --test-images")
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise UserError(folder, "no images", "give a folder of images with --test-images")
    return [read_image(file) for file in files[:max_images]]


def _time_each(detector: "OnnxDetector", images: "Sequence[np.ndarray]") -> tuple[list[float], int]:
    """Milliseconds for each image, alone in its batch, and the number of detections in all."""
    for _ in range(WARMUP_RUNS):
        detector(images[:1])
    latency_ms, found = [], 0
    for image in cli.progress(images, total=len(images), label="detecting"):
        started = time.perf_counter()
        detections = detector([image])
        latency_ms.append((time.perf_counter() - started) * 1000)
        found += len(detections[0].scores)
    return latency_ms, found


def _compare(
    detector: "OnnxDetector", images: "Sequence[np.ndarray]", model_path: Path
) -> dict[str, Any]:
    import torch

    from common.models import load_model

    loaded = load_model(model_path, torch.device("cpu"))
    if artifacts.sha256(model_path) != detector.metadata["source_sha256"]:
        log.warning("%s is not the checkpoint this file was exported from", model_path)
    measured = parity.compare_with_torch(loaded.model, detector, [[image] for image in images])
    log.info("Parity:   %s", parity.describe(measured))
    return measured


def build_parser() -> argparse.ArgumentParser:
    parser = cli.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--onnx-path", type=Path, default=paths.DEPLOYMENT / "model.onnx", help="the exported file"
    )
    parser.add_argument(
        "--test-images", type=Path, help="folder of images (default: the demo data's val split)"
    )
    parser.add_argument("--model-path", type=Path, help="checkpoint to compare with")
    parser.add_argument(
        "--max-images", type=cli.positive_int, default=MAX_IMAGES, help="images to run, at most"
    )
    cli.add_common_arguments(parser, output=paths.METRICS, output_help="folder for the report")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return cli.run(
        lambda: try_onnx(
            args.onnx_path,
            args.test_images,
            args.model_path,
            max_images=args.max_images,
            device=args.device,
            output=args.output,
        ),
        args,
    )


if __name__ == "__main__":
    sys.exit(main())
