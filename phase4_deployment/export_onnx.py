"""Exports a trained detector to one ONNX file, checked against PyTorch before it is kept.

    python phase4_deployment/export_onnx.py
    python phase4_deployment/export_onnx.py --model-path outputs/models/best_model.pth \\
        --output model.onnx
    python phase4_deployment/export_onnx.py --max-proposals 300     # faster; what does it cost?

The file takes uint8 images [batch, height, width, 3] of any number and size and holds everything
from the resize to the suppression of overlapping boxes. It carries its class names and settings.
"""

import argparse
import copy
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so `python phase4_deployment/export_onnx.py` finds common/

from common import artifacts, cli, environment, paths
from common.cli import UserError, log
from common.onnx_detector import FORMAT
from common.onnx_graph import DEFAULT_OPSET, OPSETS, write_onnx
from phase4_deployment.checks import parity

if TYPE_CHECKING:
    import numpy as np

    from common.models import LoadedModel

GATE_IMAGES = 8  # images of the val split that the gate's pictures are cut from


class ParityError(UserError):
    """The exported file does not find what PyTorch finds; `parity` holds the numbers."""

    def __init__(self, path: Path, measured: dict[str, Any]):
        super().__init__(
            path,
            f"differs from PyTorch ({parity.describe(measured)}), so it was not written",
            "export with the tested versions of constraints.txt",
        )
        self.parity = measured


def export_onnx(
    loaded: "LoadedModel",
    path: Path,
    *,
    images: "Sequence[np.ndarray]" = (),
    opset: int = DEFAULT_OPSET,
) -> dict[str, Any]:
    """Writes `path` and returns its parity with torchvision's own forward pass.

    Args:
        images: uint8 RGB pictures with objects for the check; made-up ones if there are none.
        opset: one of common.onnx_graph.OPSETS.

    Returns:
        See `parity.compare_with_torch`.

    Raises:
        UserError: something to export with is not installed.
        ParityError: the file differs; nothing is left at `path` that was not there before.
    """
    environment.require("onnx", "onnxscript", "onnxruntime")
    import torch

    from common.inference_graph import InferenceGraph
    from common.onnx_detector import OnnxDetector

    model = copy.deepcopy(loaded.model).cpu().float()
    with artifacts.atomic_path(path) as temporary:
        artifacts.remove_abandoned(path)
        graph = InferenceGraph(model)
        write_onnx(graph, temporary, metadata(loaded, graph), opset)
        detector = OnnxDetector(temporary, "cpu", threads=torch.get_num_threads())
        measured = parity.compare_with_torch(model, detector, parity.gate_batches(images))
        if not measured["holds"]:
            raise ParityError(path, measured)
        # Killed between the two files, no sidecar is better than one of the older export.
        artifacts.sidecar(path).unlink(missing_ok=True)
    return measured


def metadata(loaded: "LoadedModel", graph: Any) -> dict[str, str]:
    """What the file says of itself; every value is a text."""
    import torch
    import torchvision

    return {
        "format": FORMAT,
        "architecture": loaded.architecture,
        "class_names": json.dumps(loaded.class_names, ensure_ascii=False),
        "category_ids": json.dumps(loaded.category_ids),
        "min_size": str(graph.min_size),
        "max_size": str(graph.max_size),
        "score_threshold": str(graph.score_threshold),
        "iou_threshold": str(graph.iou_threshold),
        "max_detections": str(graph.max_detections),
        "max_proposals": str(graph.post_nms_top_n),
        "source_checkpoint": loaded.path.name,
        "source_sha256": artifacts.sha256(loaded.path) if loaded.path.is_file() else "",
        "torch_version": torch.__version__,
        "torchvision_version": torchvision.__version__,
    }


def gate_images(data_path: Path | None) -> "list[np.ndarray]":
    """The first val images of a data set; none when there is no data set."""
    from common.coco import read_image, training_split

    if data_path is None:
        if not (paths.DEMO / "annotations").is_dir():
            return []
        data_path = paths.DEMO
    records = training_split(data_path, "val").records[:GATE_IMAGES]
    return [read_image(record.path, (record.width, record.height)) for record in records]


def run_export(
    model_path: Path | None,
    output: Path,
    *,
    data_path: Path | None,
    opset: int,
    device: str,
    max_proposals: int | None = None,
) -> None:
    """Exports, writes what was measured beside the file and reports it.

    Args:
        max_proposals: that the file looks at; it is compared with a model that does so, too.
    """
    import torch

    from common.models import limit_proposals, load_model, proposals_of

    if device not in ("auto", "cpu"):
        remedy = "leave --device out; the exported file runs on any device"
        raise UserError(f"--device {device}", "the export and its check run on the CPU", remedy)
    if output.suffix != ".onnx":
        raise UserError(output, "the name must end in .onnx", "for instance model.onnx")
    loaded = load_model(model_path, torch.device("cpu"))
    log.info(environment.summary_line("cpu"))
    if max_proposals:
        limit_proposals(loaded.model, max_proposals)
        log.info("With %d proposals; export_all.py tells the mAP", proposals_of(loaded.model))
    images = gate_images(data_path)
    log.info("Exporting %s and comparing it with PyTorch", loaded.architecture)
    measured = export_onnx(loaded, output, images=images, opset=opset)
    if not measured["detections"]:
        log.warning("The check found no objects: give --data-path with images that hold some")
    log.info("Parity: %s (%d images)", parity.describe(measured), measured["images"])
    size_mib = output.stat().st_size / 2**20
    log.info("Size:   %.1f MiB", size_mib)
    report = {
        **artifacts.provenance("onnx_export", "cpu", [loaded.path]),
        "file": output.name,
        "sha256": artifacts.sha256(output),
        "size_mib": size_mib,
        "opset": opset,
        "max_proposals": proposals_of(loaded.model),
        "parity": measured,
    }
    artifacts.write_json(artifacts.sidecar(output), report)
    cli.finished(
        [output, artifacts.sidecar(output)],
        f"python phase4_deployment/test_onnx.py --onnx-path {paths.display(output)}",
    )


def add_proposals_argument(parser: argparse.ArgumentParser) -> None:
    """The option that export_onnx.py and export_all.py share."""
    parser.add_argument(
        "--max-proposals",
        type=cli.positive_int,
        help="regions for the box head of exported graphs (default: the model's, often 1000)",
    )


def build_parser() -> argparse.ArgumentParser:
    parser = cli.ArgumentParser(description=__doc__)
    parser.add_argument("--model-path", type=Path, help="checkpoint (default: newest best model)")
    parser.add_argument(
        "--data-path", type=Path, help="COCO data set for the check (default: the demo data)"
    )
    parser.add_argument(
        "--opset", type=int, choices=OPSETS, default=DEFAULT_OPSET, help="ONNX operator set"
    )
    add_proposals_argument(parser)
    cli.add_common_arguments(
        parser, output=paths.MODELS / "model.onnx", output_help="the file to write"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return cli.run(
        lambda: run_export(
            args.model_path,
            args.output,
            data_path=args.data_path,
            opset=args.opset,
            device=args.device,
            max_proposals=args.max_proposals,
        ),
        args,
    )


if __name__ == "__main__":
    sys.exit(main())
