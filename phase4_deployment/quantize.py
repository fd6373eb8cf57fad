"""Quantises a trained detector to INT8 and measures what that changed.

    python phase4_deployment/quantize.py --model-path outputs/models/best_model.pth \\
        --output quantized_model.pth        # PyTorch, dynamic: Linear layers only
    python phase4_deployment/quantize.py --output quantized_model.onnx --max-map-drop 0.01
                                            # ONNX Runtime, static: convolutions too

The suffix of --output chooses. Static quantisation is calibrated on images of the train split;
mAP, parity and time are measured on the val split. A model that loses more mAP than
--max-map-drop is not written and the exit status is 2.

Reports to outputs/metrics/quantization.json. Load a quantised .pth with
`phase4_deployment.quantization.load_dynamic`.
"""

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so `python phase4_deployment/quantize.py` finds common/

from common import artifacts, cli, environment, paths
from common.cli import UserError, log
from phase4_deployment import quantization

if TYPE_CHECKING:
    from common.coco import CocoSplit
    from common.models import LoadedModel
    from phase4_deployment.measuring import Format, ValImages

TIME_BUDGET_S = 20.0


def quantize(
    model_path: Path | None,
    data_path: Path | None,
    *,
    outputs: Sequence[Path],
    calibration_images: int,
    max_map_drop: float,
    max_images: int,
    num_iterations: int,
    device_name: str,
    seed: int,
    report_path: Path,
) -> None:
    """Quantises by the suffix of each output, measures all in one run and writes the report.

    Raises:
        UserError: a wrong suffix, missing inputs, or a result over the mAP budget.
    """
    import torch

    from phase4_deployment import measuring

    check_suffixes(outputs)
    device = environment.select_device("cpu" if device_name == "auto" else device_name)
    if device.type != "cpu":
        raise UserError(f"--device {device_name}", "INT8 here runs on the CPU", "use --device cpu")
    environment.seed_everything(seed)
    log.info(environment.summary_line(str(device)))
    loaded, train, val = load_inputs(model_path, data_path, device)
    images = measuring.ValImages(val, max_images)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        formats = [baseline(loaded, device)]
        for output in outputs:
            if output.suffix == ".pth":
                formats.append(dynamic_format(loaded, folder / output.name, max_map_drop))
            else:
                formats += static_formats(
                    loaded, folder, output.name, train, images, calibration_images, max_map_drop
                )
        rows, _ = measuring.measure_formats(
            formats,
            images,
            rounds=num_iterations,
            batch_sizes=(1,),
            time_budget_s=TIME_BUDGET_S,
            device=torch.device("cpu"),
            seed=seed,
        )
        artifacts.write_json(report_path, report(rows, loaded, train, val, calibration_images))
        _deliver(outputs, folder, {row["file"]: row["status"] for row in rows})


def _deliver(outputs: Sequence[Path], folder: Path, status: Mapping[str, str]) -> None:
    """Puts what was made in `folder` into its place, unless it was rejected."""
    for output in outputs:
        if status[output.name] != "ok":
            raise UserError(output, f"not written, {status[output.name]}", "raise --max-map-drop")
        with artifacts.atomic_path(output) as temporary:
            temporary.write_bytes((folder / output.name).read_bytes())
        if output.suffix == ".pth":
            summary = artifacts.read_json(artifacts.sidecar(folder / output.name))
            artifacts.write_json(artifacts.sidecar(output), summary)


def check_suffixes(outputs: Sequence[Path]) -> None:
    for output in outputs:
        if output.suffix not in (".pth", ".onnx"):
            what = f"unknown suffix {output.suffix!r}"
            raise UserError(output, what, "use .pth (dynamic, PyTorch) or .onnx (static)")


def load_inputs(
    model_path: Path | None, data_path: Path | None, device: Any
) -> tuple["LoadedModel", "CocoSplit", "CocoSplit"]:
    """The checkpoint and both splits of its data set; None takes the newest and the demo's.

    Raises:
        UserError: something is missing, or the data's classes are not the model's.
    """
    from common.coco import training_split
    from common.models import load_model

    if data_path is None:
        data_path = paths.DEMO
        log.info("Data:  %s", paths.display(data_path))
    loaded = load_model(model_path, device)
    train, val = (training_split(data_path, name) for name in ("train", "val"))
    for split in (train, val):
        if split.class_names != loaded.class_names:
            what = f"its classes are not those of {paths.display(loaded.path)}"
            raise UserError(split.annotation_file, what, "give the data the model was trained on")
        if not split.records:
            raise UserError(split.annotation_file, "no images", "give a split with images")
    return loaded, train, val


def baseline(loaded: "LoadedModel", device: Any) -> "Format":
    from common.models import stock_predictor
    from phase4_deployment.measuring import BASELINE, Format

    return Format(BASELINE, loaded.path, "pytorch", stock_predictor(loaded.model, device))


def dynamic_format(loaded: "LoadedModel", file: Path, max_map_drop: float) -> "Format":
    """Quantises dynamically into `file` and takes the model that is read back from it."""
    import torch

    from common.models import stock_predictor
    from phase4_deployment.measuring import BASELINE, Format

    model = quantization.quantize_dynamic(loaded.model)
    quantization.save_dynamic(file, model, artifacts.load_checkpoint(loaded.path))
    counts = quantization.count_quantized(model)
    log.info(
        "Dynamic INT8: %d of %d Linear and %d of %d Conv2d layers became int8",
        *(
            number
            for kind in ("Linear", "Conv2d")
            for number in (counts[kind]["int8"], sum(counts[kind].values()))
        ),
    )
    predict = stock_predictor(quantization.load_dynamic(file), torch.device("cpu"))
    return Format(
        "pytorch_int8_dynamic",
        file,
        "pytorch",
        predict,
        same_runtime=BASELINE,
        max_map_drop=max_map_drop,
        extra={"quantized": counts},
    )


def static_formats(
    loaded: "LoadedModel",
    folder: Path,
    int8_name: str,
    train: "CocoSplit",
    images: "ValImages",
    calibration_images: int,
    max_map_drop: float,
) -> list["Format"]:
    """ONNX in FP32 (exported into `folder`) and the INT8 made from it."""
    from phase4_deployment.export_onnx import GATE_IMAGES, export_onnx
    from phase4_deployment.measuring import Format

    fp32 = folder / "model.onnx" if int8_name != "model.onnx" else folder / "model_fp32.onnx"
    export_onnx(loaded, fp32, images=images.images[:GATE_IMAGES])
    return [
        Format("onnx_fp32", fp32, "onnxruntime", quantization.onnx_predictor(fp32)),
        int8_format(fp32, folder / int8_name, train, images, calibration_images, max_map_drop),
    ]


def int8_format(
    fp32: Path,
    file: Path,
    train: "CocoSplit",
    images: "ValImages",
    calibration_images: int,
    max_map_drop: float,
) -> "Format":
    """Static INT8 of an FP32 ONNX file, within the mAP budget if that can be."""
    from common.evaluation import coco_map
    from phase4_deployment import int8_search
    from phase4_deployment.measuring import Format

    def measure_map(predict: Any) -> float:
        return coco_map(images.split, images.detect(predict))["map"] or 0.0

    result = int8_search.quantize_within_budget(
        fp32,
        file,
        quantization.calibration_records(train, calibration_images),
        measure_map,
        measure_map(quantization.onnx_predictor(fp32)),
        max_map_drop,
    )
    log.info(
        "Static INT8: %d of %d layers became int8; in float: %s",
        result.int8_layers,
        result.layers,
        ", ".join(result.float_groups) or "none",
    )
    drop = f"mAP drop {result.map_drop:.4f} over the budget of {max_map_drop}"
    return Format(
        "onnx_int8",
        file,
        "onnxruntime",
        quantization.onnx_predictor(file),
        same_runtime="onnx_fp32",
        max_map_drop=max_map_drop,
        status="ok" if result.accepted else f"rejected: {drop}",
        extra={
            "quantized": {"int8": result.int8_layers, "all": result.layers},
            "float_groups": list(result.float_groups),
            "search": list(result.trials),
        },
    )


def report(
    rows: Sequence[dict[str, Any]],
    loaded: "LoadedModel",
    train: "CocoSplit",
    val: "CocoSplit",
    calibration_images: int,
) -> dict[str, Any]:
    """The content of quantization.json."""
    inputs = [loaded.path, train.annotation_file, val.annotation_file]
    return {
        **artifacts.provenance("quantization", "cpu", inputs),
        "architecture": loaded.architecture,
        "baseline": rows[0]["name"],
        "calibration": {
            "split": "train",
            "images": min(calibration_images, len(train.records)),
            "annotations": train.annotation_file,
        },
        "formats": list(rows),
    }


def build_parser() -> argparse.ArgumentParser:
    parser = cli.ArgumentParser(description=__doc__)
    quantization.add_arguments(parser)
    cli.add_common_arguments(
        parser,
        output=paths.MODELS / "quantized_model.pth",
        output_help="quantised model: .pth dynamic (PyTorch), .onnx static (ONNX Runtime)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    report_path = paths.METRICS / "quantization.json"

    def work() -> None:
        quantize(
            args.model_path,
            args.data_path,
            outputs=[args.output],
            calibration_images=args.calibration_images,
            max_map_drop=args.max_map_drop,
            max_images=args.max_images,
            num_iterations=args.num_iterations,
            device_name=args.device,
            seed=args.seed,
            report_path=report_path,
        )
        cli.finished([args.output, report_path], "python phase4_deployment/export_all.py")

    return cli.run(work, args)


if __name__ == "__main__":
    sys.exit(main())
