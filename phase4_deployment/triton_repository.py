"""The model repository with which NVIDIA's Triton Inference Server serves a package.

    python phase4_deployment/triton_repository.py                    # of outputs/deployment
    python phase4_deployment/triton_repository.py --package outputs/deployment \\
        --device cuda --instances 2 --output outputs/triton
    docker run --gpus all --rm -p 8000:8000 -v "$PWD/outputs/triton/model_repository:/models:ro" \\
        nvcr.io/nvidia/tritonserver:YY.MM-py3 tritonserver --model-repository=/models
    python outputs/triton/client.py street.jpg                     # pip install tritonclient[http]

Writes model_repository/detector/config.pbtxt, 1/model.onnx beside it, and an example of a client.
The batch size and how long a picture waits for others come from what the package measured, on the
CPU it was built on.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so `python phase4_deployment/triton_repository.py` finds common/

from common import artifacts, cli, paths
from common.cli import UserError, log
from phase4_deployment.package.file_check import INFO, file_findings

if TYPE_CHECKING:
    from common.onnx_detector import OnnxDetector

NAME, MODEL = "detector", "model.onnx"
CLIENT = Path(__file__).with_name("triton_client.py")
KINDS = {"auto": "KIND_AUTO", "cuda": "KIND_GPU", "cpu": "KIND_CPU"}
TYPES = {"uint8": "TYPE_UINT8", "float": "TYPE_FP32", "int64": "TYPE_INT64"}


class Batching(NamedTuple):
    """How many pictures share an inference, and for how long one waits for others, microseconds."""

    size: int
    max_delay_us: int


def write_repository(package: Path, output: Path, *, device: str, instances: int) -> None:
    """Checks the package and writes the folder for it.

    Args:
        device: "auto", "cpu" or "cuda": where Triton runs the model.
        instances: copies of it that run at a time, on each GPU or on the CPU.

    Raises:
        UserError: no whole package, one without a measurement of its model, or a folder with
            something else in it.
    """
    from common.onnx_detector import OnnxDetector

    if device not in KINDS:
        remedy = "give auto, cpu or cuda; config.pbtxt can name single GPUs"
        raise UserError(f"--device {device}", "is no kind of instance", remedy)
    info = read_info(package)
    folder = output / "model_repository" / NAME
    if output.exists() and not folder.is_dir() and (output.is_file() or any(output.iterdir())):
        raise UserError(output, "holds something else", "give another --output folder")
    batching = batching_of(info, package / INFO)
    detector = OnnxDetector(package / MODEL, "cpu", threads=1)
    text = config(detector, batching, kind=KINDS[device], instances=instances)
    with artifacts.atomic_path(folder / "1" / MODEL) as temporary:
        shutil.copyfile(package / MODEL, temporary)
    with artifacts.atomic_path(output / "client.py") as temporary:
        shutil.copyfile(CLIENT, temporary)
    artifacts.write_text(folder / "config.pbtxt", text)
    log.info("Batches of %d, within %d us", *batching)
    saved = [folder / "config.pbtxt", folder / "1" / MODEL, output / "client.py"]
    cli.finished(saved, f"tritonserver --model-repository={paths.display(folder.parent)}")


def read_info(package: Path) -> dict[str, Any]:
    """package_info.json of a package whose files are all there and whole."""
    if not (package / INFO).is_file():
        remedy = "make one with: python phase4_deployment/export_all.py"
        raise UserError(package, "is no package", remedy)
    if findings := file_findings(package):
        what, _, remedy = findings[0].partition(" – ")
        raise UserError(package, what, remedy)
    return artifacts.read_json(package / INFO)


def batching_of(info: Mapping[str, Any], path: Path) -> Batching:
    """The batch size that the package was found best with within its latency budget, and the wait.

    A picture waits for what the budget leaves after the 90th percentile of that batch, but for no
    longer than the batch takes: company that takes longer to come saves less than it costs. A size
    of 1 needs no company; it is taken, too, where not even one picture keeps within the budget.

    Args:
        path: of `info`, for the error.

    Raises:
        UserError: the measurement is missing.
    """
    try:
        size = int(info["batch_sizes"][MODEL]["latency"] or 1)
        (row,) = (row for row in info["formats"] if row["file"] == MODEL)
        (batch,) = (batch for batch in row["batches"] if batch["batch_size"] == size)
        p90_ms, budget_ms = batch["latency_ms"]["p90"], info["latency_budget_ms"]
    except (KeyError, TypeError, ValueError):
        remedy = "make the package again with: python phase4_deployment/export_all.py"
        raise UserError(path, f"does not tell the latencies of {MODEL}", remedy) from None
    wait_ms = 0.0 if size == 1 else min(budget_ms - p90_ms, p90_ms)
    return Batching(size, round(1000 * wait_ms))


def config(detector: "OnnxDetector", batching: Batching, *, kind: str, instances: int) -> str:
    """config.pbtxt: text of the protocol buffer `inference.ModelConfig`."""
    from common.onnx_detector import PROVIDER_OPTIONS

    lines = [
        f'name: "{NAME}"',
        'backend: "onnxruntime"',
        f"max_batch_size: {batching.size}",
    ]
    for field, entries in (
        ("input", detector.session.get_inputs()),
        ("output", detector.session.get_outputs()),
    ):
        lines += [line for entry in entries for line in _tensor(field, entry)]
    lines += [
        "dynamic_batching {",
        f"  preferred_batch_size: [ {batching.size} ]",
        f"  max_queue_delay_microseconds: {batching.max_delay_us}",
        "}",
        f"instance_group [ {{ kind: {kind} count: {instances} }} ]",
    ]
    if kind != "KIND_CPU":
        options = PROVIDER_OPTIONS["CUDAExecutionProvider"]  # TF32 would move boxes
        lines += ["optimization { execution_accelerators { gpu_execution_accelerator [ {"]
        lines += ['  name: "cuda"']
        lines += [
            f"  parameters {{ key: {_text(k)} value: {_text(v)} }}" for k, v in options.items()
        ]
        lines += ["} ] } }"]
    for key in ("class_names", "category_ids"):
        value = _text(json.dumps(detector.metadata[key], ensure_ascii=False))
        lines += [f"parameters {{ key: {_text(key)} value {{ string_value: {value} }} }}"]
    return "\n".join(lines) + "\n"


def _tensor(field: str, entry: Any) -> list[str]:
    """An input or output, from ONNX Runtime's own description of it."""
    dims = [dim if isinstance(dim, int) else -1 for dim in entry.shape[1:]]  # named ones are open
    lines = [
        f"{field} [ {{",
        f"  name: {_text(entry.name)}",
        f"  data_type: {TYPES[entry.type.removeprefix('tensor(').removesuffix(')')]}",
        f"  dims: {dims or [1]}",
    ]
    if not dims:  # one number for each picture: Triton wants a dimension, the model has none
        lines += ["  reshape { shape: [ ] }"]
    return [*lines, "} ]"]


def _text(value: str) -> str:
    """A string as protocol buffers write it: JSON's escapes of quotes and controls are theirs."""
    return json.dumps(value, ensure_ascii=False)


def build_parser() -> argparse.ArgumentParser:
    parser = cli.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--package", type=Path, default=paths.DEPLOYMENT, help="folder that export_all.py wrote"
    )
    parser.add_argument(
        "--instances",
        type=cli.positive_int,
        default=1,
        help="copies of the model that run at a time, on each GPU or on the CPU",
    )
    cli.add_common_arguments(parser, output=paths.OUTPUTS / "triton", output_help="folder to write")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return cli.run(
        lambda: write_repository(
            args.package, args.output, device=args.device, instances=args.instances
        ),
        args,
    )


if __name__ == "__main__":
    sys.exit(main())
