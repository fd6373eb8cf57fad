"""Runs an exported detector over images in every runtime there is: does each find the same?

    python phase4_deployment/test_onnx.py --onnx-path outputs/deployment/model.onnx
    python phase4_deployment/test_onnx.py --onnx-path outputs/deployment/model.onnx \\
        --test-images test_data/ --model-path outputs/models/best_model.pth
    python phase4_deployment/test_onnx.py --runtimes onnxruntime,openvino,web

The file runs in ONNX Runtime on the CPU and with CUDA, in OpenVINO, and in a browser through
onnxruntime-web. Detections are compared with those of the checkpoint it was exported from, given
with --model-path or found in outputs/models; without one, with ONNX Runtime on the CPU.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so `python phase4_deployment/test_onnx.py` finds common/

from common import artifacts, cli, environment, paths
from common.cli import UserError, log
from phase4_deployment import web_page
from phase4_deployment.checks import parity

if TYPE_CHECKING:
    import numpy as np

    from common.onnx_detector import OnnxDetector
    from phase4_deployment.checks.onnx_runtimes import Tools

MAX_IMAGES = 50
DEVICES = ("auto", "cpu", "cuda")
CPU, CUDA = "onnxruntime", "onnxruntime-cuda"
RUNTIMES = (CPU, CUDA, "openvino", "web")
REPORT = "onnx_test.json"


def try_onnx(
    onnx_path: Path,
    test_images: Path | None,
    model_path: Path | None,
    *,
    runtimes: Sequence[str] | None,
    tools: "Tools",
    max_images: int,
    device: str,
    output: Path,
) -> None:
    """Runs the file in each runtime, compares what they find, and writes onnx_test.json.

    Args:
        runtimes: names of RUNTIMES, each of which must be usable; None takes those that are.
        tools: where the browser and its runtime are.

    Raises:
        UserError: a package or file is missing or damaged, a runtime or device asked for by name
            cannot be used, a runtime fails, or detections differ.
    """
    from phase4_deployment.checks import onnx_check, onnx_runtimes

    names, asked = choose(runtimes, device)
    environment.require("onnx", "onnxruntime")
    detector = _load(onnx_path)
    for name in asked:
        onnx_runtimes.RUNTIMES[name].require(tools)
    images = _read_images(test_images, max_images)
    checkpoint = model_path or onnx_check.find_checkpoint(detector.metadata)
    if checkpoint is not None:
        _warn_of_another(checkpoint, detector.metadata)
    check = onnx_check.OnnxCheck(onnx_path, checkpoint, with_a_pair(images), tools)
    rows = [check.row(name, is_asked=name in asked) for name in names]
    used_cuda = any(row["provider"] == onnx_runtimes.CUDA for row in rows)
    inputs = [onnx_path, *([checkpoint] if checkpoint else [])]
    report = {
        **artifacts.provenance("onnx_test", _device(used_cuda), inputs),
        "images": len(images),
        "reference": check.reference_name,
        "runtimes": rows,
    }
    artifacts.write_json(output / REPORT, report)
    _raise_for(rows, onnx_path, check.reference_name, output / REPORT)
    cli.finished([output / REPORT], "python phase4_deployment/export_all.py")


def choose(runtimes: Sequence[str] | None, device: str) -> tuple[list[str], list[str]]:
    """The runtimes to try, and which of them were asked for by name.

    Raises:
        UserError: an unknown runtime or device, or two options that contradict each other.
    """
    if device not in DEVICES:
        raise UserError(f"--device {device}", "not supported", f"use one of {', '.join(DEVICES)}")
    asked = [*(runtimes or ()), *([CUDA] if device == "cuda" else [])]
    for name in asked:
        if name not in RUNTIMES:
            raise UserError("--runtimes", *cli.unknown_choice(name, RUNTIMES))
    if device == "cpu" and CUDA in asked:
        raise UserError(f"--runtimes {CUDA}", "contradicts --device cpu", "leave one of them out")
    tried = [name for name in RUNTIMES if runtimes is None or name in asked]
    if device == "cpu" and CUDA in tried:
        tried.remove(CUDA)
    return tried, [name for name in tried if name in asked]


def _load(onnx_path: Path) -> "OnnxDetector":
    """The file on the CPU, which says what is wrong with it before another runtime sees it."""
    from common.onnx_detector import OnnxDetector

    detector = OnnxDetector(onnx_path, "cpu")
    architecture = detector.metadata.get("architecture", "unknown architecture")
    log.info("Model:    %s, %d classes", architecture, len(detector.class_names))
    return detector


def _warn_of_another(checkpoint: Path, metadata: dict[str, Any]) -> None:
    if checkpoint.is_file() and artifacts.sha256(checkpoint) != metadata.get("source_sha256"):
        log.warning("%s is not the checkpoint this file was exported from", checkpoint)


def _device(used_cuda: bool) -> str:
    return str(environment.select_device("auto" if used_cuda else "cpu"))


def _read_images(folder: Path | None, max_images: int) -> "list[np.ndarray]":
    """uint8 RGB images of a folder, or of the demo data's val split."""
    from common.coco import load_split, read_image
    from phase4_deployment.package.picture_results import pictures_among

    if folder is None:
        records = load_split(paths.DEMO, "val").records[:max_images]
        return [read_image(record.path) for record in records]
    if not folder.is_dir():
        raise UserError(folder, "no such folder", "check the path given with --test-images")
    files = pictures_among([str(folder)])
    if not files:
        raise UserError(folder, "no images", "give a folder of images with --test-images")
    return [read_image(file) for file in files[:max_images]]


def with_a_pair(images: "Sequence[np.ndarray]") -> "list[list[np.ndarray]]":
    """Each image alone, and the first with its mirror image: company must not change anything."""
    return [*([image] for image in images), [images[0], images[0][:, ::-1].copy()]]


def _raise_for(
    rows: Sequence[dict[str, Any]], onnx_path: Path, reference: str, report: Path
) -> None:
    """One line for all runtimes that failed or differ."""
    wrong = []
    for row in rows:
        if row["status"] == "differs":
            text = parity.describe(row["parity"])
            wrong.append(f"differs from {reference} in {row['name']} ({text})")
        elif row["status"] == "failed":
            wrong.append(f"fails in {row['name']} ({row['reason']})")
    if wrong:
        remedy = f"export it again; the numbers are in {paths.display(report)}"
        raise UserError(onnx_path, ", ".join(wrong), remedy)


def build_parser() -> argparse.ArgumentParser:
    parser = cli.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--onnx-path", type=Path, default=paths.DEPLOYMENT / "model.onnx", help="the exported file"
    )
    parser.add_argument(
        "--test-images", type=Path, help="folder of images (default: the demo data's val split)"
    )
    parser.add_argument(
        "--model-path", type=Path, help="checkpoint to compare with (default: the file's own)"
    )
    parser.add_argument(
        "--runtimes",
        type=cli.names,
        help=f"{', '.join(RUNTIMES)}, with commas between (default: those that are installed)",
    )
    web_page.add_runtime_argument(parser)
    parser.add_argument("--browser", type=Path, help="Chromium or Chrome (default: looked for)")
    parser.add_argument(
        "--max-images", type=cli.positive_int, default=MAX_IMAGES, help="images to run, at most"
    )
    cli.add_common_arguments(parser, output=paths.METRICS, output_help="folder for the report")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)

    def work() -> None:
        from phase4_deployment.checks.onnx_runtimes import Tools

        try_onnx(
            args.onnx_path,
            args.test_images,
            args.model_path,
            runtimes=args.runtimes,
            tools=Tools(args.web_runtime, args.browser),
            max_images=args.max_images,
            device=args.device,
            output=args.output,
        )

    return cli.run(work, args)


if __name__ == "__main__":
    sys.exit(main())
