"""The deployment folder: its small files, its check in isolation, and putting it in place whole."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common import artifacts, paths
from common.cli import UserError
from common.evaluation import compare_detections
from common.models import Detections

if TYPE_CHECKING:
    from common.models import LoadedModel

DETECT = Path(__file__).resolve().parent / "package" / "detect.py"
COMMON = ("errors.py", "onnx_detector.py", "paths.py")  # what it needs of common/
INFO = "package_info.json"
KNOWN = (".gitkeep", "model.onnx", "model.onnx.json", INFO)  # beside which a package may go
REQUIREMENTS = """\
# What detect.py needs. With an NVIDIA GPU take onnxruntime-gpu[cuda,cudnn] instead; on a machine
# without libGL.so.1 (slim containers) opencv-python-headless does the same.
numpy>=1.26
opencv-python>=4.8
onnxruntime>=1.20
"""
MIN_MATCHED = 0.99


@contextlib.contextmanager
def package_folder(target: Path) -> Iterator[Path]:
    """Yields an empty folder beside `target` that takes its place when the body succeeds.

    On failure an older package stays as it was. Files that belong to no package move over.

    Raises:
        UserError: `target` holds other people's files, or the place cannot be written to.
    """
    check_target(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".tmp-{target.name}-", dir=target.parent))
    except OSError as error:
        what = f"cannot be written ({error.strerror})"
        raise UserError(target, what, "choose another --output-dir") from error
    new, old = work / "new", work / "old"
    try:
        new.mkdir()
        yield new
        ours = _packaged(target)  # before anything moves: a damaged list must cost nobody a file
        if target.exists():
            os.rename(target, old)
        try:
            os.rename(new, target)
        except OSError:
            if old.exists():
                os.rename(old, target)
            raise
        if old.exists():
            for entry in old.iterdir():  # somebody's results, .gitkeep
                if entry.name not in ours and not (target / entry.name).exists():
                    os.rename(entry, target / entry.name)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def check_target(target: Path) -> None:
    """Raises UserError unless `target` is absent, empty, or the place of a whole package."""
    if not target.exists():
        return
    if not target.is_dir():
        raise UserError(target, "not a folder", "choose another --output-dir")
    names = sorted(entry.name for entry in target.iterdir())
    if names and not set(names) & set(KNOWN):
        what = f"holds {names[0]} and no package"
        raise UserError(target, what, "choose an empty --output-dir")
    _packaged(target)


def _packaged(folder: Path) -> set[str]:
    """Names of the files and folders that a package wrote.

    Raises:
        UserError: their list is damaged.
    """
    names = {INFO, "model.onnx", "model.onnx.json"}
    if (folder / INFO).is_file():
        files = artifacts.read_json(folder / INFO).get("files", {})
        names |= {file.split("/")[0] for file in files}
    return names


def write_small_files(
    folder: Path,
    loaded: "LoadedModel",
    rows: Sequence[Mapping[str, Any]],
    report: Mapping[str, Any],
) -> None:
    """detect.py, labels.json, requirements.txt, README.md and, last, package_info.json."""
    write_program(folder)
    labels = [
        {"label": index, "category_id": category, "name": name}
        for index, (category, name) in enumerate(
            zip(loaded.category_ids, loaded.class_names, strict=True), start=1
        )
    ]
    artifacts.write_json(folder / "labels.json", {"labels": labels})
    artifacts.write_text(folder / "requirements.txt", REQUIREMENTS)
    shipped = [row for row in rows if row["status"] == "ok" and row["file"]]
    artifacts.write_text(folder / "README.md", readme(loaded, shipped, report))
    onnx = next(row for row in shipped if row["name"] == "onnx_fp32")
    files = {
        path.relative_to(folder).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": artifacts.sha256(path),
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    info = {
        **{key: report[key] for key in ("command", "created", "environment", "inputs")},
        "schema": f"package/{artifacts.SCHEMA_VERSION}",
        "architecture": loaded.architecture,
        "class_names": list(loaded.class_names),
        "category_ids": list(loaded.category_ids),
        "source_checkpoint": {"file": loaded.path.name, "sha256": artifacts.sha256(loaded.path)},
        "default_model": "model.onnx",
        "default_batch_size": onnx["optimal_batch_size"],
        "formats": list(rows),
        "files": files,
    }
    artifacts.write_json(folder / INFO, info)


def write_program(folder: Path) -> None:
    """Copies detect.py and what it needs of the project."""
    shutil.copyfile(DETECT, folder / DETECT.name)
    (folder / "common").mkdir()
    for name in COMMON:
        shutil.copyfile(paths.ROOT / "common" / name, folder / "common" / name)


def readme(
    loaded: "LoadedModel", rows: Sequence[Mapping[str, Any]], report: Mapping[str, Any]
) -> str:
    """The package's README.md; every figure in it is one of `rows`."""
    from jinja2 import Template

    template = Path(__file__).resolve().parent / "package" / "README.md.j2"
    return Template(
        template.read_text(encoding="utf-8"), trim_blocks=True, lstrip_blocks=True
    ).render(
        architecture=loaded.architecture,
        class_names=loaded.class_names,
        rows=rows,
        by_name={row["name"]: row for row in rows},
        environment=report["environment"],
        images=report["val_images"],
        created=report["created"],
    )


def verify(
    folder: Path,
    model: str,
    image: np.ndarray,
    expected: Detections,
    category_ids: Sequence[int],
) -> dict[str, Any]:
    """Runs the folder's detect.py as its user will, and compares what it finds.

    The child process has no access to the project: isolated mode, another working directory.

    Args:
        model: name of the .onnx file in the folder.
        image: uint8 RGB (H, W, 3).
        expected: what the project itself finds on the image.

    Returns:
        the parity of the two.

    Raises:
        RuntimeError: detect.py fails or finds something else.
    """
    import cv2

    with tempfile.TemporaryDirectory() as name:
        elsewhere = Path(name)
        picture = elsewhere / "image.png"  # lossless: a JPEG decodes differently elsewhere
        picture.write_bytes(cv2.imencode(".png", image[..., ::-1])[1].tobytes())
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        done = subprocess.run(
            [
                *(sys.executable, "-I", "-B", str(folder / "detect.py"), str(picture)),
                *("--model", str(folder / model), "--output", str(elsewhere / "found")),
                *("--confidence", "0", "--device", "cpu"),
            ],
            cwd=elsewhere,
            env=environment,
            capture_output=True,
            text=True,
            encoding="utf-8",
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"detect.py with {model}: {done.stderr.strip()[-500:]}")
        found = json.loads((elsewhere / "found" / "detections.json").read_text(encoding="utf-8"))
    boxes = found["images"][0]["detections"]
    actual = Detections(
        np.asarray([box["box_xyxy"] for box in boxes], np.float32).reshape(-1, 4),
        np.asarray([box["score"] for box in boxes], np.float32),
        np.asarray([category_ids.index(box["category_id"]) + 1 for box in boxes], np.int64),
    )
    parity = compare_detections([expected], [actual])
    matched = parity["matched"] or 0.0
    if matched < MIN_MATCHED:
        raise RuntimeError(
            f"detect.py with {model} agrees on {matched:.2f} of the boxes in "
            f"{paths.display(folder)}, {MIN_MATCHED} needed"
        )
    return parity


def leave_out(folder: Path, rows: Sequence[Mapping[str, Any]], shipped_status: str) -> None:
    """Removes the files of formats that may not be shipped."""
    for row in rows:
        if row["status"] != shipped_status and row["file"]:
            (folder / row["file"]).unlink(missing_ok=True)
