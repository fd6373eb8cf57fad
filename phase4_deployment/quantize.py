"""Quantises a trained detector to INT8 and measures what that changed.

    python phase4_deployment/quantize.py --model-path outputs/models/best_model.pth \\
        --output quantized_model.pth        # PyTorch, dynamic: Linear layers only
    python phase4_deployment/quantize.py --output quantized_model.onnx --max-map-drop 0.01
                                            # ONNX Runtime, static: convolutions too

The suffix of --output chooses. Static quantisation is calibrated on images of the train split;
mAP, parity and time are measured on the val split. A model that loses more mAP than
--max-map-drop is written as NAME.rejected instead, and the exit status is 2.

Reports to outputs/metrics/quantization.json. Load a quantised .pth with
`phase4_deployment.quantization.load_dynamic`.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so `python phase4_deployment/quantize.py` finds common/

from common import artifacts, cli, environment, paths
from common.cli import UserError, log
from common.model_and_data import load_model_and_data
from phase4_deployment import quantization

if TYPE_CHECKING:
    from common.coco import CocoSplit
    from common.models import LoadedModel
    from phase4_deployment.formats.base import Format, Ingredients

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
    delivers: bool = True,
) -> None:
    """Quantises by the suffix of each output, measures all in one run and writes the report.

    Args:
        delivers: puts the outputs in their places; without it they are only measured.

    Raises:
        UserError: a wrong suffix, missing inputs, an output that is the model, or a result over the
            mAP budget.
    """
    from phase4_deployment import measuring
    from phase4_deployment.formats import pytorch_fp32
    from phase4_deployment.formats.base import Ingredients

    check_suffixes(outputs)
    device = environment.select_device("cpu" if device_name == "auto" else device_name)
    if device.type != "cpu":
        raise UserError(f"--device {device_name}", "INT8 here runs on the CPU", "use --device cpu")
    environment.seed_everything(seed)
    log.info(environment.summary_line(str(device)))
    loaded, (train, val) = load_model_and_data(model_path, data_path, device)
    if delivers:
        _keep_the_model(loaded.path, outputs)
    with tempfile.TemporaryDirectory() as name:
        ingredients = Ingredients(
            loaded,
            folder=Path(name),
            scratch=Path(name),
            calibration=quantization.calibration_records(train, calibration_images),
            val=measuring.ValImages(val, max_images),
            max_map_drop=max_map_drop,
        )
        formats = [pytorch_fp32.of_checkpoint(loaded, loaded.path)]
        for output in outputs:
            formats += quantised(ingredients, Path(name) / output.name)
        rows, _ = measuring.measure_formats(
            formats,
            ingredients.val,
            rounds=num_iterations,
            batch_sizes=(1,),
            time_budget_s=TIME_BUDGET_S,
            device=device,
            seed=seed,
        )
        artifacts.write_json(report_path, report(rows, loaded, train, val, calibration_images))
        if delivers:
            _deliver(outputs, Path(name), {row["file"]: row["status"] for row in rows})


def quantised(ingredients: "Ingredients", file: Path) -> list["Format"]:
    """What the suffix of `file` asks for, and the FP32 format of the same runtime."""
    from phase4_deployment.formats import onnx_fp32, onnx_int8, pytorch_int8_dynamic

    if file.suffix == ".pth":
        return [pytorch_int8_dynamic.quantise(ingredients, file)]
    if file.name == ingredients.onnx_name:
        ingredients.onnx_name = "model_fp32.onnx"
    return [onnx_fp32.build(ingredients), onnx_int8.quantise(ingredients, file)]


def _deliver(outputs: Sequence[Path], folder: Path, status: Mapping[str, str]) -> None:
    """Puts what was made in `folder` into its place, unless it was rejected."""
    for output in outputs:
        if status[output.name] != "ok":
            rejected = output.with_name(f"{output.name}.rejected")
            _copy(folder / output.name, rejected)
            what = f"not written, {status[output.name]}; kept as {rejected.name}"
            raise UserError(output, what, "raise --max-map-drop")
        _copy(folder / output.name, output)
        if output.suffix == ".pth":
            summary = artifacts.read_json(artifacts.sidecar(folder / output.name))
            artifacts.write_json(artifacts.sidecar(output), summary)


def _copy(source: Path, target: Path) -> None:
    with artifacts.atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)
        artifacts.sidecar(target).unlink(missing_ok=True)  # killed here, better none than another's


def check_suffixes(outputs: Sequence[Path]) -> None:
    for output in outputs:
        if output.suffix not in (".pth", ".onnx"):
            what = f"unknown suffix {output.suffix!r}"
            raise UserError(output, what, "use .pth (dynamic, PyTorch) or .onnx (static)")


def _keep_the_model(model_path: Path, outputs: Sequence[Path]) -> None:
    for output in outputs:
        if output.exists() and output.samefile(model_path):
            raise UserError(output, "is the model that is quantised", "choose another --output")


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
        quantize(outputs=[args.output], report_path=report_path, **quantization.settings_of(args))
        cli.finished([args.output, report_path], "python phase4_deployment/export_all.py")

    return cli.run(work, args)


if __name__ == "__main__":
    sys.exit(main())
