"""Builds the deployment folder: every format of a detector, measured in one run and verified.

    python phase4_deployment/export_all.py
    python phase4_deployment/export_all.py \\
        --model-path outputs/models/best_model.pth \\
        --output-dir outputs/deployment \\
        --batch-sizes 1,2,4,8,16,32
    python phase4_deployment/export_all.py --formats all        # also those that take minutes
    python phase4_deployment/export_all.py --max-proposals 300  # less for the box head to look at

The formats, and what runs ONNX without PyTorch: detect.py with phase 3's own files, labels.json,
requirements.txt, README.md, package_info.json. The same goes into a .zip beside the folder, and is
tried from there.
A format beyond its tolerance is left out, and the exit status is then 2 although the rest is there.
All formats but TensorRT's run on the CPU; batch sizes above 1 are timed as far as --time-budget-s
reaches.

Reports to outputs/metrics/export.json, export_comparison.png and quantization.json.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so `python phase4_deployment/export_all.py` finds common/

from common import artifacts, cli, environment, paths
from common.cli import UserError, log
from common.model_and_data import load_model_and_data
from phase4_deployment import export_onnx, quantization
from phase4_deployment.formats import catalogue
from phase4_deployment.formats.base import OK, Format

if TYPE_CHECKING:
    from common.models import LoadedModel
    from phase4_deployment.formats.base import Ingredients
    from phase4_deployment.measuring import ValImages

BATCH_SIZES = "1,2,4,8,16,32"
TIME_BUDGET_S = 20.0
LATENCY_BUDGET_MS = 100.0
COLD_START_IMAGES = 3
QUANTIZATION = "quantization.json"
REPORTS = ("export.json", QUANTIZATION, "export_comparison.png")


def export_all(
    model_path: Path | None,
    data_path: Path | None,
    *,
    output_dir: Path,
    names: Sequence[str],
    batch_sizes: Sequence[int],
    calibration_images: int,
    max_map_drop: float,
    max_images: int,
    num_iterations: int,
    time_budget_s: float,
    latency_budget_ms: float,
    seed: int,
    metrics: Path,
    max_proposals: int | None = None,
) -> None:
    """Builds, measures and verifies the package, then puts it in place of an older one.

    Args:
        names: of the formats; the baseline and what the package runs are always built.

    Raises:
        UserError: unfit inputs, an output folder of somebody else, an ONNX export that differs from
            PyTorch (nothing is replaced), or a format that was left out (the rest is in place).
    """
    import torch

    from phase4_deployment import cold_start, measuring, quantize
    from phase4_deployment.formats.base import Ingredients
    from phase4_deployment.packing import package_files

    package_files.check_target(output_dir)
    environment.seed_everything(seed)
    log.info(environment.summary_line("cpu"))
    loaded, (train, val) = load_model_and_data(model_path, data_path, cpu := torch.device("cpu"))
    images = measuring.ValImages(val, max_images)

    def describe(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return quantize.report(rows, loaded, train, val, calibration_images)

    with package_files.package_folder(output_dir) as folder, tempfile.TemporaryDirectory() as other:
        ingredients = Ingredients(
            loaded,
            folder=folder,
            scratch=Path(other),
            calibration=quantization.calibration_records(train, calibration_images),
            val=images,
            max_map_drop=max_map_drop,
            max_proposals=max_proposals,
        )
        formats = build_formats(names, ingredients)
        cold_start.measure_cold_starts(formats, images.images[:COLD_START_IMAGES])
        budgets = {"time_budget_s": time_budget_s, "latency_budget_ms": latency_budget_ms}
        how: dict[str, Any] = {"batch_sizes": batch_sizes, "device": cpu, "seed": seed, **budgets}
        rows, skipped = measuring.measure_formats(formats, images, rounds=num_iterations, **how)
        report = {**describe(rows), "batch_sizes_skipped": skipped, **budgets}
        shipped = _pack(ingredients, formats, rows, report, output_dir.name)
    _write_reports(metrics, report, shipped, describe)
    _finish(output_dir, metrics, shipped)


def _pack(
    ingredients: "Ingredients",
    formats: Sequence[Format],
    rows: Sequence[dict[str, Any]],
    report: dict[str, Any],
    name: str,
) -> list[dict[str, Any]]:
    """Makes the package and its archive of what was measured, and tries it.

    Args:
        report: of the export; the rest of its entries are added.
        name: of the folder in the archive.

    Returns:
        the rows of the formats that a package may have.
    """
    from phase4_deployment.packing import package_files, package_trial

    for row in rows:
        if row["name"] in catalogue.NEEDED and row["status"] != OK:
            remedy = "use the tested versions of constraints.txt, and more images (--max-images)"
            raise UserError(row["name"], f"{row['status']}; there is no package without it", remedy)
    folder, loaded, val = ingredients.folder, ingredients.loaded, ingredients.val
    report["schema"] = f"export/{artifacts.SCHEMA_VERSION}"
    report["val_images"] = len(val.images)
    report["max_proposals"] = ingredients.proposals
    package_files.leave_out(formats, rows)
    python, report["tried_in"] = package_trial.interpreter(ingredients.scratch / "environment")
    for_comparison = {item.name for item in formats if not item.is_shipped}
    shipped = [row for row in rows if row["name"] not in for_comparison]
    package_files.write_small_files(folder, loaded, shipped, report, val.images)
    archive = package_files.write_archive(folder, name)
    report["package_check"] = check_package(archive, python, formats, rows, val, loaded)
    return shipped


def _write_reports(
    metrics: Path,
    report: dict[str, Any],
    shipped: Sequence[dict[str, Any]],
    describe: Callable[[Sequence[dict[str, Any]]], dict[str, Any]],
) -> None:
    """Writes REPORTS; the picture is of all formats, export.json of those that can be shipped.

    Args:
        describe: makes the content of quantization.json of its rows.
    """
    from phase4_deployment import export_plot

    rows = report["formats"]
    compared = [row for row in rows if "int8" in row["name"] or row["name"].endswith("fp32")]
    if any("int8" in row["name"] for row in compared):  # else that of another run stays
        artifacts.write_json(metrics / QUANTIZATION, describe(compared))
    artifacts.write_json(metrics / "export.json", {**report, "formats": shipped})
    export_plot.draw(report, metrics / "export_comparison.png")


def _finish(output_dir: Path, metrics: Path, shipped: Sequence[dict[str, Any]]) -> None:
    """Tells what is there, and raises UserError for what is not."""
    from phase4_deployment.packing.package_files import archive_path

    has_int8 = any("int8" in row["name"] for row in shipped)
    reports = [metrics / name for name in REPORTS if has_int8 or name != QUANTIZATION]
    cli.finished([output_dir, archive_path(output_dir), *reports], "python -m common.report")
    left_out = [row for row in shipped if row["status"].startswith(("rejected", "failed"))]
    if left_out:
        told = ", ".join(f"{row['name']} ({row['status']})" for row in left_out)
        remedy = "leave it out of --formats, or use the tested versions of constraints.txt"
        if all("over the budget" in row["status"] for row in left_out):
            remedy = "accept it with a larger --max-map-drop, or use the formats that are there"
        raise UserError(output_dir, f"left out of the package: {told}", remedy)


def build_formats(names: Sequence[str], ingredients: "Ingredients") -> list["Format"]:
    """Writes the formats of these names; the baseline is the first."""
    wanted = {*names, *catalogue.NEEDED}
    return [_build(module, ingredients) for module in catalogue.ALL if module.NAME in wanted]


def _build(module: catalogue.FormatModule, ingredients: "Ingredients") -> "Format":
    """A format that the package can do without may fail: its row says why, and nothing of it is
    left in the folder."""
    before = set(ingredients.folder.iterdir())
    try:
        return module.build(ingredients)
    except UserError:
        raise
    except Exception as error:
        if module.NAME in catalogue.NEEDED:
            raise
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        log.warning("%s failed: %s", module.NAME, why)
        log.debug("", exc_info=error)
        for file in set(ingredients.folder.iterdir()) - before - {ingredients.onnx_path}:
            file.unlink()
        return Format(module.NAME, None, module.RUNTIME, None, status=f"failed: {why}")


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
    from phase4_deployment.packing import package_trial

    log.info("Unpacking the package elsewhere and running it")
    status = {row["name"]: row["status"] for row in rows}
    checked = {}
    assert formats[0].predict is not None
    image = package_trial.image_for(val.images, formats[0].predict)
    with package_trial.unpacked(archive, python) as trial:
        trial.run("--verify", "--device", "cpu")
        for item in formats:
            if item.file and item.file.suffix == ".onnx" and status[item.name] == OK:
                assert item.predict is not None
                # How far that is from PyTorch has been judged already, over all val images
                name, expected = item.file.name, item.predict([image])[0]
                checked[name] = {
                    "boxes": int((expected.scores >= PARITY_MIN_SCORE).sum()),
                    "parity": trial.picture_parity(name, image, expected, loaded.category_ids),
                    "tracks": trial.tracks(name, image),
                }
    return checked


def format_names(text: str) -> list[str]:
    """The value of --formats."""
    names = cli.names(text)
    if "all" in names:
        return list(catalogue.FORMATS)
    for name in names:
        if name not in catalogue.FORMATS:
            what, remedy = cli.unknown_choice(name, [*catalogue.FORMATS, "all"])
            raise argparse.ArgumentTypeError(f"{what} – {remedy}")
    return names


def build_parser() -> argparse.ArgumentParser:
    parser = cli.ArgumentParser(description=__doc__)
    quantization.add_arguments(parser)
    parser.add_argument(
        "--output-dir", type=Path, default=paths.DEPLOYMENT, help="the deployment folder"
    )
    parser.add_argument(
        "--formats",
        type=format_names,
        default=",".join(catalogue.DEFAULT),
        help=f"comma-separated, of {', '.join(catalogue.FORMATS)}; or all",
    )
    export_onnx.add_proposals_argument(parser)
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
            names=args.formats,
            batch_sizes=args.batch_sizes,
            calibration_images=args.calibration_images,
            max_map_drop=args.max_map_drop,
            max_images=args.max_images,
            num_iterations=args.num_iterations,
            time_budget_s=args.time_budget_s,
            latency_budget_ms=args.latency_budget_ms,
            seed=args.seed,
            metrics=args.output,
            max_proposals=args.max_proposals,
        )

    return cli.run(work, args)


if __name__ == "__main__":
    sys.exit(main())
