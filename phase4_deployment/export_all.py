"""Builds the deployment folder: every format of a detector, measured in one run and verified.

    python phase4_deployment/export_all.py
    python phase4_deployment/export_all.py \\
        --model-path outputs/models/best_model.pth \\
        --output-dir outputs/deployment \\
        --batch-sizes 1,2,4,8,16,32

model.pth (PyTorch), model.onnx, model_int8.onnx (static INT8), model.pt2 (torch.export), and what
runs them without PyTorch: detect.py with phase 3's own files, labels.json, requirements.txt,
README.md, package_info.json. The same goes into a .zip beside the folder, and is tried from there.
A format beyond its tolerance is left out, and the exit status is then 2 although the rest is there.
All formats run on the CPU; batch sizes above 1 are timed as far as --time-budget-s reaches.

Reports to outputs/metrics/export.json, export_comparison.png and quantization.json.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so `python phase4_deployment/export_all.py` finds common/

from common import artifacts, cli, environment, paths
from common.cli import UserError, log
from phase4_deployment import quantization

if TYPE_CHECKING:
    import numpy as np

    from common.inference_graph import InferenceGraph
    from common.models import LoadedModel, Predictor
    from phase4_deployment.measuring import Format, ValImages

BATCH_SIZES = "1,2,4,8,16,32"
TIME_BUDGET_S = 20.0
LATENCY_BUDGET_MS = 100.0
COLD_START_IMAGES = 3
REPORTS = ("export.json", "quantization.json", "export_comparison.png")
SHIPPED_STATUS = "ok"


def export_all(
    model_path: Path | None,
    data_path: Path | None,
    *,
    output_dir: Path,
    batch_sizes: Sequence[int],
    calibration_images: int,
    max_map_drop: float,
    max_images: int,
    num_iterations: int,
    time_budget_s: float,
    latency_budget_ms: float,
    seed: int,
    metrics: Path,
) -> None:
    """Builds, measures and verifies the package, then puts it in place of an older one.

    Raises:
        UserError: missing or unfit inputs, an output folder of somebody else, an ONNX export that
            differs from PyTorch (nothing is replaced), or a format that was left out (the rest
            is in place).
    """
    import torch

    from phase4_deployment import measuring, package_files, package_trial
    from phase4_deployment.quantize import load_inputs
    from phase4_deployment.quantize import report as quantization_report

    package_files.check_target(output_dir)
    environment.seed_everything(seed)
    log.info(environment.summary_line("cpu"))
    loaded, train, val = load_inputs(model_path, data_path, cpu := torch.device("cpu"))
    images = measuring.ValImages(val, max_images)
    with package_files.package_folder(output_dir) as folder, tempfile.TemporaryDirectory() as other:
        calibration = (train, images, calibration_images, max_map_drop)
        formats = build_formats(loaded, folder, Path(other), *calibration)
        measure_cold_starts(formats, images.images[:COLD_START_IMAGES])
        budgets = {"time_budget_s": time_budget_s, "latency_budget_ms": latency_budget_ms}
        timing: dict[str, Any] = {"rounds": num_iterations, "batch_sizes": batch_sizes, **budgets}
        rows, skipped = measuring.measure_formats(formats, images, **timing, device=cpu, seed=seed)
        package_files.leave_out(folder, rows, SHIPPED_STATUS)
        python, tried_in = package_trial.interpreter(Path(other) / "environment")
        report = {
            **quantization_report(rows, loaded, train, val, calibration_images),
            "schema": f"export/{artifacts.SCHEMA_VERSION}",
            "val_images": len(images.images),
            "batch_sizes_skipped": skipped,
            "tried_in": tried_in,
            **budgets,
        }
        shipped = [row for row in rows if row["name"] != "pytorch_int8_dynamic"]
        package_files.write_small_files(folder, loaded, shipped, report, images.images)
        archive = package_files.write_archive(folder, output_dir.name)
        report["package_check"] = check_package(archive, python, formats, rows, images, loaded)
    compared = [row for row in rows if "int8" in row["name"] or row["name"].endswith("fp32")]
    quantized = quantization_report(compared, loaded, train, val, calibration_images)
    _write_reports(metrics, {**report, "formats": rows}, shipped, quantized)
    saved = [output_dir, package_files.archive_path(output_dir), *(metrics / n for n in REPORTS)]
    cli.finished(saved, "python -m common.report")
    _tell_what_was_left_out(output_dir, shipped)


def _write_reports(
    metrics: Path, report: dict[str, Any], shipped: Sequence[Any], quantized: dict[str, Any]
) -> None:
    """Writes REPORTS; the picture is of all formats, export.json of those that can be shipped."""
    from phase4_deployment import export_plot

    artifacts.write_json(metrics / "quantization.json", quantized)
    artifacts.write_json(metrics / "export.json", {**report, "formats": shipped})
    export_plot.draw(report, metrics / "export_comparison.png")


def _tell_what_was_left_out(output_dir: Path, shipped: Sequence[dict[str, Any]]) -> None:
    for row in shipped:
        if row["status"].startswith("rejected"):
            raise UserError(
                output_dir / row["file"],
                f"left out of the package, {row['status']}",
                "accept it with a larger --max-map-drop, or use the formats that are there",
            )


def build_formats(
    loaded: "LoadedModel",
    folder: Path,
    other: Path,
    train: Any,
    images: Any,
    calibration_images: int,
    max_map_drop: float,
) -> list["Format"]:
    """Writes every format, the shipped ones into `folder`; the baseline is the first."""
    import torch

    from common.inference_graph import InferenceGraph, graph_predictor
    from common.models import save_model
    from phase4_deployment.export_onnx import GATE_IMAGES, export_onnx
    from phase4_deployment.measuring import Format
    from phase4_deployment.quantize import baseline, dynamic_format, int8_format

    cpu = torch.device("cpu")
    pth, onnx, pt2 = (folder / f"model.{suffix}" for suffix in ("pth", "onnx", "pt2"))
    description: dict[str, Any] = {
        "architecture": loaded.architecture,
        "class_names": list(loaded.class_names),
        "category_ids": list(loaded.category_ids),
    }
    save_model(pth, loaded.model, summary=description, **description)
    stock = baseline(loaded, cpu)
    stock.file = pth
    log.info("Exporting model.onnx")
    parity = export_onnx(loaded, onnx, images=images.images[:GATE_IMAGES])
    log.info("Exporting model.pt2")
    program = export_program(InferenceGraph(loaded.model), pt2)
    log.info("Quantising")
    return [
        stock,
        Format("torchscript", None, "pytorch", None, status=try_torchscript(loaded.model)),
        Format("pytorch_export", pt2, "pytorch", graph_predictor(program, cpu)),
        Format(
            "onnx_fp32",
            onnx,
            "onnxruntime",
            quantization.onnx_predictor(onnx),
            extra={"export_gate": parity},
        ),
        int8_format(
            onnx, folder / "model_int8.onnx", train, images, calibration_images, max_map_drop
        ),
        dynamic_format(loaded, other / "model_int8_dynamic.pth", max_map_drop),
    ]


def export_program(graph: "InferenceGraph", path: Path) -> Any:
    """Saves a torch.export program with dynamic batch, height and width; returns its module.

    The guards that the export derives refuse feature maps of one row or column, on which the
    program is right all the same; they are left out here and when loading.
    """
    import torch

    dynamic = torch.export.Dim.DYNAMIC
    example = torch.zeros(2, 96, 128, 3, dtype=torch.uint8)
    with torch.no_grad():
        program = torch.export.export(
            graph, (example,), dynamic_shapes=({0: dynamic, 1: dynamic, 2: dynamic},)
        )
    with artifacts.atomic_path(path) as temporary:
        torch.export.save(program, temporary)
    return program.module(check_guards=False)


def try_torchscript(model: Any) -> str:
    """The status of TorchScript: what torch.jit.trace answers to a detector, in its own words."""
    import torch

    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.jit.trace(model, ([torch.zeros(3, 64, 64)],))
    except RuntimeError as error:
        return f"unsupported: {str(error).strip().splitlines()[0]}"
    return "unsupported: traced for one image of one size only"


def measure_cold_starts(formats: Sequence["Format"], images: "Sequence[np.ndarray]") -> None:
    """Loads each shipped file in a process of its own; a file that reads back wrong is rejected.

    Fills in `extra["cold_start"]` and `extra["peak_memory_mib"]` (of that process).
    """
    import numpy as np
    import torch

    with tempfile.TemporaryDirectory() as name:
        archive = Path(name) / "images.npz"
        np.savez(archive, *images)
        for item in formats:
            if item.file is None or item.predict is None or item.name == "pytorch_int8_dynamic":
                continue
            log.info("Loading %s in a process of its own", item.file.name)
            done = subprocess.run(
                [
                    *(sys.executable, str(Path(__file__).with_name("cold_start.py"))),
                    *(str(item.file), str(archive), str(torch.get_num_threads())),
                ],
                capture_output=True,
                text=True,
                encoding="utf-8",
                check=False,
            )
            if done.returncode:
                item.status = f"rejected: cannot be loaded ({done.stderr.strip()[-200:]})"
                continue
            result = json.loads(done.stdout)
            detections = result.pop("detections")
            item.extra["peak_memory_mib"] = result.pop("peak_memory_mib")
            item.extra["cold_start"] = result
            _compare_reloaded(item, detections, images)


def _compare_reloaded(
    item: "Format", detections: Sequence[Sequence], images: "Sequence[np.ndarray]"
) -> None:
    import numpy as np

    from common.evaluation import compare_detections
    from common.models import Detections
    from phase4_deployment.measuring import MIN_MATCHED

    predict: Predictor = item.predict  # type: ignore[assignment]
    expected = [predict([image])[0] for image in images]
    actual = [
        Detections(
            np.asarray(boxes, np.float32).reshape(-1, 4),
            np.asarray(scores, np.float32),
            np.asarray(labels, np.int64),
        )
        for boxes, scores, labels in detections
    ]
    matched = compare_detections(expected, actual)["matched"] or 0.0
    if matched < MIN_MATCHED:
        item.status = f"rejected: the file read back agrees on {matched:.3f} of the boxes only"


def check_package(
    archive: Path,
    python: Path,
    formats: Sequence["Format"],
    rows: Sequence[dict[str, Any]],
    val: "ValImages",
    loaded: "LoadedModel",
) -> dict[str, Any]:
    """Unpacks the archive elsewhere and runs its detect.py with each ONNX file that is in it.

    Args:
        python: see `package_trial.interpreter`.
        val: the first image in which PyTorch finds something is taken.

    Returns:
        for each file the number of `boxes` in a val image and their `parity`, and how many `tracks`
        were the same as phase 3's in a short video.
    """
    from common.evaluation import PARITY_MIN_SCORE
    from phase4_deployment import package_trial

    log.info("Unpacking the package elsewhere and running it")
    status = {row["name"]: row["status"] for row in rows}
    # FP32 must find what PyTorch finds; INT8 what the measured file finds
    judges = {"onnx_fp32": formats[0], **{f.name: f for f in formats if f.name == "onnx_int8"}}
    checked = {}
    assert formats[0].predict is not None
    image = package_trial.image_for(val.images, formats[0].predict)
    with package_trial.unpacked(archive, python) as trial:
        trial.run("--verify", "--device", "cpu")
        for item in formats:
            if item.name in judges and item.file and status[item.name] == SHIPPED_STATUS:
                judge = judges[item.name].predict
                assert judge is not None
                name, expected = item.file.name, judge([image])[0]
                checked[name] = {
                    "boxes": int((expected.scores >= PARITY_MIN_SCORE).sum()),
                    "parity": trial.picture_parity(name, image, expected, loaded.category_ids),
                    "tracks": trial.tracks(name, image),
                }
    return checked


def build_parser() -> argparse.ArgumentParser:
    parser = cli.ArgumentParser(description=__doc__)
    quantization.add_arguments(parser)
    parser.add_argument(
        "--output-dir", type=Path, default=paths.DEPLOYMENT, help="the deployment folder"
    )
    parser.add_argument(
        "--batch-sizes", type=cli.positive_int_list, default=BATCH_SIZES, help="comma-separated"
    )
    parser.add_argument(
        "--time-budget-s",
        type=cli.positive_float,
        default=TIME_BUDGET_S,
        help="for all timing together; larger batch sizes are skipped beyond it",
    )
    parser.add_argument(
        "--latency-budget-ms",
        type=cli.positive_float,
        default=LATENCY_BUDGET_MS,
        help="the package takes the best batch size whose p90 stays below this for live inputs",
    )
    cli.add_common_arguments(
        parser, output=paths.METRICS, output_help="folder for export.json and the picture"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)

    def work() -> None:
        if args.device not in ("auto", "cpu"):
            what = "the formats are built and compared on the CPU"
            raise UserError(f"--device {args.device}", what, "leave --device out")
        export_all(
            args.model_path,
            args.data_path,
            output_dir=args.output_dir.resolve(),
            batch_sizes=args.batch_sizes,
            calibration_images=args.calibration_images,
            max_map_drop=args.max_map_drop,
            max_images=args.max_images,
            num_iterations=args.num_iterations,
            time_budget_s=args.time_budget_s,
            latency_budget_ms=args.latency_budget_ms,
            seed=args.seed,
            metrics=args.output,
        )

    return cli.run(work, args)


if __name__ == "__main__":
    sys.exit(main())
