"""Files that are either whole or absent: atomic writes, checksums, provenance, safe loading."""

import contextlib
import errno
import glob
import hashlib
import json
import os
import shutil
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from common import environment, paths
from common.cli import UserError

SCHEMA_VERSION = 1
ABANDONED_S = 3600.0  # a temporary file that nobody wrote to for so long is a killed process's
# What a full or failing disk answers; such an error carries no file name.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on success it takes `path`'s place in one step.

    On any failure, also a full disk, the temporary file is removed and an older file at `path`
    is untouched. The suffix is kept, since video and ONNX writers choose their format by it.

    Raises:
        UserError: the folder cannot be made or written to, or the disk is full.
    """
    path = Path(path)
    with _temporary(path) as temporary, told_as(path, temporary):
        yield temporary
        make_durable(temporary)
        os.replace(temporary, path)
        sync_folder(path.parent)


def write_together(writers: Mapping[Path, Callable[[Path], object]]) -> None:
    """Writes files that tell of one another: none takes its place before all of them are whole.

    On any failure all older files are untouched.

    Args:
        writers: path -> what writes to the temporary path it is given. They are called in this
            order, in which the files take their places afterwards.

    Raises:
        UserError: a folder cannot be made or written to, or the disk is full.
    """
    with contextlib.ExitStack() as stack:
        whole: list[tuple[Path, Path]] = []
        for path, write in writers.items():
            temporary = stack.enter_context(_temporary(path))
            with told_as(path, temporary):
                write(temporary)
                make_durable(temporary)
            whole.append((path, temporary))
        for path, temporary in whole:
            with told_as(path, temporary):
                os.replace(temporary, path)
        for folder in {path.parent for path in writers}:
            sync_folder(folder)


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A new file beside `path`, removed at the end unless it has become another."""
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        prefix = _temporary_prefix(path)
        handle, name = tempfile.mkstemp(prefix=prefix, suffix=path.suffix, dir=path.parent)
        os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def told_as(path: Path, temporary: Path) -> Iterator[None]:
    """Errors of writing `temporary` name the file it is to become: a UserError about `path`."""
    try:
        yield
    except OSError as error:
        disk_failed = error.filename is None and error.errno in DISK_ERRORS
        if disk_failed or str(error.filename) in (str(temporary), str(path)):
            raise _cannot_write(path, error) from error
        raise  # a pipe, or somebody else's file: not a problem of this output


@contextlib.contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Whatever the file system says in the block becomes a UserError about the output `path`."""
    try:
        yield
    except OSError as error:
        raise _cannot_write(path, error) from error


def make_durable(temporary: Path) -> None:
    """Puts a file that is whole on the disk, readable for everybody."""
    temporary.chmod(0o644)
    with open(temporary, "rb+") as written:
        os.fsync(written.fileno())


def _temporary_prefix(path: Path) -> str:
    return f".tmp-{path.stem[:40]}-"


def _cannot_write(path: Path, error: OSError) -> UserError:
    reason = error.strerror or str(error)
    if error.errno in DISK_ERRORS:
        return UserError(path, f"cannot be written ({reason})", "free some space there")
    return UserError(path, f"cannot be written ({reason})", "choose another --output")


def sync_folder(folder: Path) -> None:
    """Makes the rename itself survive a power cut (not every platform can open a folder)."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_text(path: Path, text: str) -> None:
    """UTF-8 with Unix line ends; the undecodable bytes of a file name are written as `\\udcXX`."""
    with atomic_path(path) as temporary:
        _put_text(temporary, text)


def _put_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes `content` with its keys in the order given.

    Raises:
        ValueError: a number is NaN or infinite, which JSON does not have.
    """
    write_text(path, _json(content))


def put_json(path: Path, content: Mapping[str, Any]) -> None:
    """What `write_json` writes, into a path of `write_together`."""
    _put_text(path, _json(content))


def _json(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False, default=_plain)
    return text + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return paths.display(value)
    if hasattr(value, "tolist"):  # numpy scalars and arrays, tensors
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def read_json(path: Path) -> dict[str, Any]:
    """Raises UserError when the file is missing, unreadable, not UTF-8 or not a JSON object."""
    path = Path(path)
    if path.exists() and not path.is_file():  # a pipe or device would block or never end
        raise UserError(path, "not a regular file", "give a .json file")
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(path, "no such file", "check the path") from None
    except OSError as error:
        raise UserError(path, f"cannot be read ({error.strerror})", "check the path") from None
    except UnicodeDecodeError as error:
        raise UserError(path, f"not UTF-8 at byte {error.start}", "save it as UTF-8") from None
    except json.JSONDecodeError as error:
        detail = f"{error.msg} at line {error.lineno}"
        raise UserError(path, f"not valid JSON ({detail})", "restore or recreate it") from None
    except (RecursionError, ValueError) as error:  # nested too deep, or a number of 5,000 digits
        detail = str(error).split(";")[0]
        raise UserError(path, f"not readable as JSON ({detail})", "recreate it") from None
    if not isinstance(content, dict):
        raise UserError(path, "does not hold a JSON object", "restore or recreate it")
    return content


def provenance(schema: str, device: str, inputs: Sequence[Path] = ()) -> dict[str, Any]:
    """The keys every report starts with: what made it, when, where and from which files.

    Args:
        schema: name of the report's form, for instance "training".
        device: the torch device the work ran on ("cpu", "cuda:0").
        inputs: files the result depends on; each is listed with its sha256.
    """
    return {
        "schema": f"{schema}/{SCHEMA_VERSION}",
        "command": environment.command_line(),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "environment": environment.describe(device),
        "inputs": {paths.display(path): sha256(path) for path in inputs if Path(path).is_file()},
    }


def save_checkpoint(
    path: Path,
    checkpoint: Mapping[str, Any],
    summary: Mapping[str, Any],
    *,
    keep_previous: bool = False,
) -> None:
    """Writes tensors and plain values to `path` and `summary` with the sha256 to its sidecar.

    Whenever the process dies, a whole checkpoint is at `path`, and a sidecar beside it only if it
    is its own.

    Args:
        keep_previous: the checkpoint that was there stays as NAME.previous.pth, with its sidecar.

    Raises:
        UserError: the folder cannot be written to, or the disk is full.
    """
    path = Path(path)
    with atomic_path(path) as temporary:
        remove_abandoned(path)
        _require_space(path, checkpoint)
        _write_checkpoint(temporary, checkpoint)
        digest = sha256(temporary)
        if keep_previous and path.exists():
            _keep(path, previous_checkpoint(path))
        # Killed between the two files, no sidecar is better than one of the older checkpoint.
        sidecar(path).unlink(missing_ok=True)
    write_json(sidecar(path), {**summary, "file": path.name, "sha256": digest})


def remove_abandoned(path: Path) -> None:
    """Frees the space of what processes that were killed had half written for `path`."""
    pattern = f"{glob.escape(_temporary_prefix(path))}*{path.suffix}"
    for file in path.parent.glob(pattern):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - file.stat().st_mtime > ABANDONED_S:
                file.unlink()


def _require_space(path: Path, checkpoint: Mapping[str, Any]) -> None:
    """Refuses what is sure not to fit, before the disk is full for everybody else."""
    needed, disk = sum(_storage_bytes(checkpoint).values()), shutil.disk_usage(path.parent)
    if disk.total and needed > disk.free:  # some network disks tell zeros only
        what = f"needs {needed / 2**20:.1f} MiB, {disk.free / 2**20:.1f} MiB are free"
        raise UserError(path, what, "free some space there")


def _storage_bytes(value: Any) -> dict[int, int]:
    """Bytes of all tensors in `value`, by the memory they are in: shared memory is saved once."""
    import torch

    if isinstance(value, torch.Tensor):
        storage = value.untyped_storage()
        return {storage.data_ptr(): storage.nbytes()}
    if isinstance(value, Mapping):
        value = list(value.values())
    if not isinstance(value, list | tuple):
        return {}
    return {key: size for item in value for key, size in _storage_bytes(item).items()}


def _write_checkpoint(path: Path, checkpoint: Mapping[str, Any]) -> None:
    """Straight to the disk, tensor by tensor: no second copy of all weights in memory."""
    import torch

    try:
        with open(path, "wb") as file:
            torch.save(dict(checkpoint), file)
            file.flush()
            os.fsync(file.fileno())  # slow, so before the older checkpoint is touched
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):  # closing the archive failed after the disk did
            raise error.__context__ from None
        raise


def _keep(path: Path, previous: Path) -> None:
    """Lets `previous` be the checkpoint at `path`, which stays there, too; each with its sidecar.

    Both names lead to the same bytes until `path` is replaced; on a disk without hard links it is
    copied.
    """
    remove_abandoned(previous)
    for file, kept in ((path, previous), (sidecar(path), sidecar(previous))):
        if file.exists():
            with atomic_path(kept) as temporary:
                temporary.unlink()
                try:
                    os.link(file, temporary)
                except OSError:
                    with open(file, "rb") as source, open(temporary, "wb") as copy:
                        shutil.copyfileobj(source, copy, 1 << 20)
                # Beside what comes into its place no sidecar is better than that of another.
                sidecar(previous).unlink(missing_ok=True)


def previous_checkpoint(path: Path) -> Path:
    """last.pth -> last.previous.pth."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Loads a checkpoint of ours onto the CPU without executing any pickled code.

    Raises:
        UserError: the file is missing, damaged, differs from the sha256 beside it, or is no
            checkpoint of this project. Names the previous one where it was kept.
    """
    import torch

    path = Path(path)
    if not path.is_file():
        what = "not a file" if path.exists() else "no such file"
        remedy = _go_back(path, "train one with: python phase1_training/train.py")
        raise UserError(path, what, remedy)
    recorded = read_json(sidecar(path)).get("sha256") if sidecar(path).is_file() else None
    if recorded is not None and recorded != sha256(path):
        remedy = _go_back(path, "restore it or train again")
        raise UserError(path, "differs from the sha256 in its .json", remedy)
    try:
        _check_archive(path, reads_all=recorded is None)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of how it stores int8 itself
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises six kinds for damaged or foreign files
        reason = "not a checkpoint, damaged, or holds code that is never executed"
        remedy = _go_back(path, "give a .pth written by phase1_training")
        raise UserError(path, reason, remedy) from error
    if not isinstance(checkpoint, dict) or "model_state_dict" not in checkpoint:
        raise UserError(path, "not a checkpoint of this project", "give one by phase1_training")
    return checkpoint


def _check_archive(path: Path, *, reads_all: bool) -> None:
    """Raises ValueError for what torch.save does not write: parts that are larger once unpacked,
    as of a decompression bomb, or that are not what the archive's own checksums say.

    Args:
        reads_all: compare these checksums; torch does not, and loads a flipped bit as it is.
    """
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
        if sum(part.file_size for part in parts) > path.stat().st_size:
            raise ValueError("its parts are larger than the file")
        if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
            raise ValueError("its parts are compressed")
        if reads_all and (damaged := archive.testzip()):
            raise ValueError(f"{damaged} is damaged")


def _go_back(path: Path, otherwise: str) -> str:
    """How to mend a lost or damaged checkpoint."""
    previous = previous_checkpoint(path)
    if not previous.is_file():
        return otherwise
    names = [file.name for file in (path, sidecar(path)) if file.exists()]
    delete = f"delete {' and '.join(names)}, " if names else ""
    return f"go back to the one before it: {delete}rename {previous.stem}.* to {path.stem}.*"


def sidecar(path: Path) -> Path:
    """best_model.pth -> best_model.json, model.onnx -> model.onnx.json."""
    return path.with_suffix(".json") if path.suffix == ".pth" else Path(f"{path}.json")
