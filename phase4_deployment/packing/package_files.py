"""The deployment folder and its archive: the small files, and putting both in place whole."""

import contextlib
import glob
import os
import shlex
import shutil
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import artifacts, paths
from common.cli import UserError
from phase4_deployment.formats.base import OK
from phase4_deployment.package import command_line
from phase4_deployment.package.file_check import INFO, is_inside
from phase4_deployment.packing.golden_image import write_golden
from phase4_deployment.packing.shipped_modules import DETECT, SERVE, shipped_files

if TYPE_CHECKING:
    import numpy as np

    from common.models import LoadedModel
    from phase4_deployment.formats.base import Format

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
REQUIREMENTS_SERVE = """\
# What serve.py needs beside requirements.txt.
fastapi>=0.115
uvicorn>=0.30
python-multipart>=0.0.20  # pictures that are sent as forms
"""
ARCHIVE = "package.zip"  # beside the folder in work, until both take their places
OLD = "old"  # beside it, the package that is replaced
ABANDONED_S = 24 * 3600.0  # a folder in work that nobody wrote to for so long is a killed process's
EARLIEST = (1980, 1, 1, 0, 0, 0)  # that a .zip can tell


# --- putting it in place ----------------------------------------------------------------------


@contextlib.contextmanager
def package_folder(target: Path) -> Iterator[Path]:
    """Yields an empty folder beside `target` that takes its place when the body succeeds, and with
    it the archive that `write_archive` made of it.

    On failure an older package stays as it was. Files that belong to no package move over. Where a
    process was killed in between, its work is brought to an end first.

    Raises:
        UserError: `target` holds other people's files, a file of theirs is where the package wants
            one, or something cannot be written or moved.
    """
    _finish_killed(target)
    check_target(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".tmp-{target.name}-", dir=target.parent))
    except OSError as error:
        what = f"cannot be written ({error.strerror})"
        raise UserError(target, what, "choose another --output-dir") from error
    is_rubbish = True
    try:
        (work / "new").mkdir()
        yield work / "new"
        _take_places(work, target)
    except NotMovedBackError:
        is_rubbish = False  # what could not be moved back is still in there
        raise
    except OSError as error:
        if error.errno not in artifacts.DISK_ERRORS:
            raise
        what = f"cannot be written ({error.strerror})"
        raise UserError(target, what, "free some space there") from error
    finally:
        if is_rubbish:
            shutil.rmtree(work, ignore_errors=True)


class NotMovedBackError(UserError):
    """Files of an older package, or beside it, are left in the working folder."""


def _take_places(work: Path, target: Path) -> None:
    """Moves new/ to the target and the archive beside it; all that moved goes back on failure.

    Raises:
        UserError: something cannot be moved, or would replace somebody's file.
        NotMovedBackError: and not everything could be moved back.
    """
    new, old, packed = work / "new", work / OLD, work / ARCHIVE
    others = _other_files(target)
    for name in others:
        if (new / name).exists():
            what = "is no file of the older package, but the new one has a file of that name"
            raise UserError(target / name, what, "move it elsewhere")
        (new / name).parent.mkdir(parents=True, exist_ok=True)
    moves = [(target, old)] if target.exists() else []
    # What is moved last is still in the older package if a process is killed: see _finish_killed.
    moves += [(new, target), *((old / name, target / name) for name in others)]
    begun: list[tuple[Path, Path]] = []
    try:
        for source, place in moves:
            begun.append((source, place))
            os.replace(source, place)
        if packed.exists():  # last, as it cannot be undone
            os.replace(packed, archive_path(target))
    except OSError as error:
        _move_back(begun, work)
        names = [Path(name) for name in (error.filename2, error.filename) if name]
        where = next((name for name in names if work not in name.parents), target)
        what = f"cannot be moved or replaced ({error.strerror or error})"
        raise UserError(where, what, "close what has it open, and run it again") from error
    except BaseException:  # Ctrl-C
        _move_back(begun, work)
        raise


def _finish_killed(target: Path) -> None:
    """After a process was killed while a package took its place, the older one comes back or, where
    the new one is in place, what a person kept in the older one and the new archive move over.
    Rubbish goes.

    Raises:
        UserError: something cannot be moved.
    """
    for work in target.parent.glob(f".tmp-{glob.escape(target.name)}-*"):
        old = work / OLD
        try:
            if old.is_dir() and not target.exists():
                os.replace(old, target)
            elif old.is_dir():
                for name in _other_files(old):
                    (target / name).parent.mkdir(parents=True, exist_ok=True)
                    if not os.path.lexists(target / name):
                        os.replace(old / name, target / name)
                if (work / ARCHIVE).exists() and not (work / "new").exists():
                    os.replace(work / ARCHIVE, archive_path(target))
            elif time.time() - _last_change(work) < ABANDONED_S:
                continue  # somebody may be at work in it
        except OSError as error:
            what = f"holds what is left of an older package ({error.strerror or error})"
            raise UserError(work, what, "move it by hand before anything else") from error
        if not old.is_dir() or not _other_files(old):
            shutil.rmtree(work, ignore_errors=True)


def _last_change(folder: Path) -> float:
    """When anything in a folder was last written."""
    return max(path.lstat().st_mtime for path in (folder, *folder.rglob("*")))


def _move_back(begun: Sequence[tuple[Path, Path]], work: Path) -> None:
    """Undoes moves, the last one first; the last may not have happened."""
    stuck = []
    for source, place in reversed(begun):
        try:
            if not os.path.lexists(source):
                os.replace(place, source)
        except OSError:
            stuck.append(source.name)
    if stuck:
        what = f"holds what could not be moved back ({', '.join(stuck)})"
        raise NotMovedBackError(work, what, "move it by hand before anything else")


def _other_files(folder: Path) -> list[Path]:
    """What somebody put into a package: results, .gitkeep; files in the package's own folders one
    by one, without what Python compiled. Relative to the folder, which may be absent.

    Raises:
        UserError: the package's list of its files is damaged.
    """
    if not folder.exists():
        return []
    packaged = _packaged(folder)
    own_folders = {name.split("/")[0] for name in packaged if "/" in name}
    found = [entry for entry in folder.iterdir() if entry.name not in packaged | own_folders]
    for entry in (folder / name for name in own_folders):
        found += [file for file in entry.rglob("*") if not file.is_dir() or file.is_symlink()]
    names = [file.relative_to(folder) for file in sorted(found)]
    return [
        name
        for name in names
        if name.as_posix() not in packaged and name.parent.name != "__pycache__"
    ]


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
            names = [name for name in archive.namelist() if name.split("/")[1:] == [INFO]]
            return bool(names) and all(is_inside(name.rstrip("/")) for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def _packaged(folder: Path) -> set[str]:
    """Names of the files that a package wrote, as common/cli.py.

    Raises:
        UserError: their list is damaged.
    """
    names = {INFO, "model.onnx", "model.onnx.json"}
    if (folder / INFO).is_file():
        listed = artifacts.read_json(folder / INFO)
        files = listed.get("files", {}) if isinstance(listed, dict) else None
        if not isinstance(files, dict) or not all(is_inside(name) for name in files):
            raise UserError(folder / INFO, "is damaged", "choose another --output-dir")
        names |= set(files)
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


def leave_out(formats: "Sequence[Format]", rows: Sequence[Mapping[str, Any]]) -> None:
    """Removes the files of formats that may not be shipped, as measured in their rows."""
    rejected = {row["name"] for row in rows if row["status"] != OK}
    for item in formats:
        for file in item.files:
            if item.name in rejected:
                file.unlink(missing_ok=True)


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
        report: of the export, with `tried_in` (see `package_trial.interpreter`).
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
    golden_boxes = write_golden(folder, images, DEFAULT_MODEL)
    shipped = [row for row in rows if row["status"] == OK and row["file"]]
    artifacts.write_text(folder / "README.md", readme(loaded, shipped, report, golden_boxes))
    info = {
        **{key: report[key] for key in ("command", "created", "environment", "inputs")},
        "max_proposals": report["max_proposals"],
        "schema": f"package/{artifacts.SCHEMA_VERSION}",
        "architecture": loaded.architecture,
        "class_names": list(loaded.class_names),
        "category_ids": list(loaded.category_ids),
        "source_checkpoint": {"file": loaded.path.name, "sha256": artifacts.sha256(loaded.path)},
        "default_model": DEFAULT_MODEL,
        "tried_in": report["tried_in"],
        "golden_boxes": golden_boxes,
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
    """The scripts, what they need of the project, and what has to be installed for each.

    Each folder gets an empty __init__.py. Without one it would be a namespace package, and any
    installed package called `common` would be imported in its place.
    """
    for script in (DETECT, SERVE):
        shutil.copyfile(script, folder / script.name)
    for file in shipped_files():
        inside = file.relative_to(paths.ROOT)
        (folder / inside).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, folder / inside)
        for parent in inside.parents[:-1]:
            (folder / parent / "__init__.py").touch()
    artifacts.write_text(folder / command_line.REQUIREMENTS, REQUIREMENTS)
    artifacts.write_text(folder / command_line.REQUIREMENTS_SERVE, REQUIREMENTS_SERVE)


def readme(
    loaded: "LoadedModel",
    rows: Sequence[Mapping[str, Any]],
    report: Mapping[str, Any],
    golden_boxes: int,
) -> str:
    """The package's README.md; every figure in it is one of `rows`."""
    from jinja2 import Template

    from common.comparison import interval_text
    from common.reporting.blocks import escape_markdown
    from phase4_deployment.package import package_check

    template = DETECT.with_name("README.md.j2").read_text(encoding="utf-8")
    # For a command to copy: --classes takes an id, too, where a name would end the line or block.
    typed = [name for name in loaded.class_names if name.isprintable() and "`" not in name]
    return Template(
        template, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    ).render(
        architecture=loaded.architecture,
        class_names=[escape_markdown(name) for name in loaded.class_names],
        one_class=shlex.quote(typed[0] if typed else str(loaded.category_ids[0])),
        rows=rows,
        by_name={row["name"]: row for row in rows},
        environment=report["environment"],
        images=report["val_images"],
        proposals=report["max_proposals"],
        latency_budget_ms=report["latency_budget_ms"],
        created=report["created"],
        tried_in=report["tried_in"],
        golden_boxes=golden_boxes,
        interval_text=interval_text,
        check=package_check,
    )
