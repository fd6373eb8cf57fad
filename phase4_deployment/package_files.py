"""The deployment folder and its archive: the small files, and putting both in place whole."""

import contextlib
import os
import shlex
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import artifacts, paths
from common.cli import UserError
from phase4_deployment.package.file_check import INFO
from phase4_deployment.shipped_modules import DETECT, shipped_files

if TYPE_CHECKING:
    import numpy as np

    from common.models import LoadedModel

KNOWN = (".gitkeep", "model.onnx", "model.onnx.json", INFO)  # beside which a package may go
DEFAULT_MODEL = "model.onnx"
REQUIREMENTS = """\
# With an NVIDIA GPU take onnxruntime-gpu[cuda,cudnn] instead of onnxruntime; on a machine without
# libGL.so.1 (slim containers) opencv-python-headless instead of opencv-python.
numpy>=1.26
opencv-python>=4.8
onnxruntime>=1.20
scipy>=1.11      # assigns detections to tracks
av>=17.0         # reads and writes video
Pillow>=10.0     # reads pictures
tqdm>=4.65       # the bar on a terminal
"""
ARCHIVE = "package.zip"  # beside the folder in work, until both take their places
EARLIEST = (1980, 1, 1, 0, 0, 0)  # that a .zip can tell
GOLDEN_CANDIDATES, GOLDEN_SIDE_PX = 10, 320
SURE = 0.9  # boxes from this score up decide which picture becomes the golden one


# --- putting it in place ----------------------------------------------------------------------


@contextlib.contextmanager
def package_folder(target: Path) -> Iterator[Path]:
    """Yields an empty folder beside `target` that takes its place when the body succeeds, and with
    it the archive that `write_archive` made of it.

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
        if (work / ARCHIVE).exists():
            os.replace(work / ARCHIVE, archive_path(target))
        if old.exists():
            for entry in old.iterdir():  # somebody's results, .gitkeep
                if entry.name not in ours and not (target / entry.name).exists():
                    os.rename(entry, target / entry.name)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def archive_path(target: Path) -> Path:
    """outputs/deployment -> outputs/deployment.zip."""
    return target.with_name(f"{target.name}.zip")


def check_target(target: Path) -> None:
    """Raises UserError unless `target` is absent, empty, or the place of a whole package, and its
    archive absent or one of a package."""
    archive = archive_path(target)
    if archive.exists() and not _is_archive(archive):
        raise UserError(archive, "is in the way and no package", "choose another --output-dir")
    if not target.exists():
        return
    if not target.is_dir():
        raise UserError(target, "not a folder", "choose another --output-dir")
    names = sorted(entry.name for entry in target.iterdir())
    if names and not set(names) & set(KNOWN):
        what = f"holds {names[0]} and no package"
        raise UserError(target, what, "choose an empty --output-dir")
    _packaged(target)


def _is_archive(path: Path) -> bool:
    """Whether it is a .zip with a package in it."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.split("/")[1:] == [INFO] for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


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


def write_archive(folder: Path, name: str) -> Path:
    """Writes all files of the folder into a .zip beside it, below a folder called `name`.

    Equal files give equal bytes: they are sorted, without times, and stored as they are, since
    weights hardly shrink and what zlib makes of the rest depends on its version.
    """
    path = folder.with_name(ARCHIVE)
    with artifacts.atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for file in sorted(folder.rglob("*"), key=lambda file: file.relative_to(folder).parts):
            if file.is_file():
                inside = f"{name}/{file.relative_to(folder).as_posix()}"
                entry = zipfile.ZipInfo(inside, EARLIEST)
                entry.create_system, entry.external_attr = 3, 0o100644 << 16  # also on Windows
                with file.open("rb") as source, archive.open(entry, "w", force_zip64=True) as copy:
                    shutil.copyfileobj(source, copy, 1 << 20)
    return path


def leave_out(folder: Path, rows: Sequence[Mapping[str, Any]], shipped_status: str) -> None:
    """Removes the files of formats that may not be shipped."""
    for row in rows:
        if row["status"] != shipped_status and row["file"]:
            (folder / row["file"]).unlink(missing_ok=True)


# --- what is in it ----------------------------------------------------------------------------


def write_small_files(
    folder: Path,
    loaded: "LoadedModel",
    rows: Sequence[Mapping[str, Any]],
    report: Mapping[str, Any],
    images: "Sequence[np.ndarray]",
) -> None:
    """Everything beside the models; package_info.json, which lists it all, comes last.

    Args:
        images: uint8 RGB (H, W, 3); one becomes the golden image.
    """
    write_program(folder)
    labels = [
        {"label": index, "category_id": category, "name": name}
        for index, (category, name) in enumerate(
            zip(loaded.category_ids, loaded.class_names, strict=True), start=1
        )
    ]
    artifacts.write_json(folder / "labels.json", {"labels": labels})
    write_golden(folder, images)
    shipped = [row for row in rows if row["status"] == "ok" and row["file"]]
    artifacts.write_text(folder / "README.md", readme(loaded, shipped, report))
    info = {
        **{key: report[key] for key in ("command", "created", "environment", "inputs")},
        "schema": f"package/{artifacts.SCHEMA_VERSION}",
        "architecture": loaded.architecture,
        "class_names": list(loaded.class_names),
        "category_ids": list(loaded.category_ids),
        "source_checkpoint": {"file": loaded.path.name, "sha256": artifacts.sha256(loaded.path)},
        "default_model": DEFAULT_MODEL,
        "latency_budget_ms": report["latency_budget_ms"],
        "batch_sizes": {
            row["file"]: {
                "throughput": row["optimal_batch_size"],
                "latency": row["batch_size_within_budget"],
            }
            for row in shipped
        },
        "formats": list(rows),
        "files": list_files(folder),
    }
    artifacts.write_json(folder / INFO, info)


def list_files(folder: Path) -> dict[str, dict[str, Any]]:
    """name -> `bytes` and `sha256` of every file in the folder."""
    return {
        path.relative_to(folder).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": artifacts.sha256(path),
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def write_program(folder: Path) -> None:
    """detect.py, what it needs of the project, and requirements.txt."""
    shutil.copyfile(DETECT, folder / DETECT.name)
    for file in shipped_files():
        copy = folder / file.relative_to(paths.ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    artifacts.write_text(folder / "requirements.txt", REQUIREMENTS)


def write_golden(folder: Path, images: "Sequence[np.ndarray]") -> None:
    """The one of the first images with the most boxes, small, and what the model finds in it."""
    import cv2

    from common.onnx_detector import OnnxDetector
    from phase4_deployment.package import package_check

    detector = OnnxDetector(folder / DEFAULT_MODEL, "cpu")
    candidates = [_small(image) for image in images[:GOLDEN_CANDIDATES]]
    counts = [int((detector([image])[0].scores >= SURE).sum()) for image in candidates]
    golden = candidates[counts.index(max(counts))]
    with artifacts.atomic_path(folder / package_check.GOLDEN_IMAGE) as temporary:
        temporary.write_bytes(cv2.imencode(".png", golden[..., ::-1])[1].tobytes())
    boxes = package_check.golden_boxes(folder, DEFAULT_MODEL, "cpu")
    content = {
        "image": package_check.GOLDEN_IMAGE,
        "model": DEFAULT_MODEL,
        "min_score": package_check.MIN_SCORE,
        "detections": boxes,
    }
    artifacts.write_json(folder / package_check.GOLDEN, content)


def _small(image: "np.ndarray") -> "np.ndarray":
    """In its own proportions, with sides up to GOLDEN_SIDE_PX."""
    import cv2

    height, width = image.shape[:2]
    scale = min(1.0, GOLDEN_SIDE_PX / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return image if scale == 1 else cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def readme(
    loaded: "LoadedModel", rows: Sequence[Mapping[str, Any]], report: Mapping[str, Any]
) -> str:
    """The package's README.md; every figure in it is one of `rows`."""
    from jinja2 import Template

    from common.comparison import interval_text
    from phase4_deployment.package import package_check

    template = DETECT.with_name("README.md.j2").read_text(encoding="utf-8")
    return Template(
        template, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    ).render(
        architecture=loaded.architecture,
        class_names=loaded.class_names,
        rows=rows,
        by_name={row["name"]: row for row in rows},
        environment=report["environment"],
        images=report["val_images"],
        latency_budget_ms=report["latency_budget_ms"],
        created=report["created"],
        interval_text=interval_text,
        quote=shlex.quote,
        check=package_check,
    )
