"""Files that are either whole or absent: atomic writes, checksums, provenance, safe loading."""

import contextlib
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from common import environment
from common.cli import UserError

SCHEMA_VERSION = 1


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on success it takes `path`'s place in one step.

    On any failure, also a full disk, the temporary file is removed and an older file at `path`
    is untouched. The suffix is kept, since video and ONNX writers choose their format by it.

    Raises:
        UserError: the folder cannot be made or written to, or the disk is full.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".tmp-", suffix=path.suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        temporary.chmod(0o644)
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        if error.filename and Path(error.filename) not in (path, path.parent, temporary):
            raise  # somebody else's file: not a problem of this output
        raise UserError(
            path, f"cannot be written ({error.strerror or error})", "choose another --output"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Makes the rename itself survive a power cut (not every platform can open a folder)."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if sys.version_info >= (3, 11) else (
            hashlib.sha256(file.read()).hexdigest()
        )


def write_text(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """UTF-8, no NaN or Infinity (they are not JSON), keys in the order given."""
    text = json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False, default=_plain)
    write_text(path, text + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # numpy scalars and arrays, tensors
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def read_json(path: Path) -> dict[str, Any]:
    """Raises UserError when the file is missing, unreadable, not UTF-8 or not a JSON object."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(path, "no such file", "check the path") from None
    except OSError as error:
        raise UserError(path, f"cannot be read ({error.strerror})", "check the path") from None
    except UnicodeDecodeError as error:
        raise UserError(path, f"not UTF-8 at byte {error.start}", "save it as UTF-8") from None
    except (json.JSONDecodeError, RecursionError) as error:
        detail = f"line {error.lineno}" if isinstance(error, json.JSONDecodeError) else "too deep"
        raise UserError(path, f"not valid JSON ({detail})", "restore or recreate it") from None
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
        "inputs": {str(path): sha256(path) for path in inputs if Path(path).is_file()},
    }


def save_checkpoint(path: Path, checkpoint: Mapping[str, Any], summary: Mapping[str, Any]) -> None:
    """Writes tensors and plain values to `path` and `summary` with the sha256 to `path`.json."""
    import torch

    with atomic_path(path) as temporary:
        try:
            torch.save(dict(checkpoint), temporary)
        except RuntimeError as error:  # torch reports a full disk as a RuntimeError
            raise UserError(path, f"cannot be written ({error})", "free some space") from error
        digest = sha256(temporary)
    write_json(sidecar(path), {**summary, "file": path.name, "sha256": digest})


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Loads a checkpoint of ours onto the CPU without executing any pickled code.

    Raises:
        UserError: the file is missing, damaged, differs from the sha256 beside it, or is no
            checkpoint of this project.
    """
    import torch

    path = Path(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "no such file"
        raise UserError(path, what, "train one with: python phase1_training/train.py")
    if sidecar(path).is_file() and read_json(sidecar(path)).get("sha256") not in (None, sha256(path)):
        raise UserError(path, "differs from the sha256 in its .json", "restore it or train again")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises six kinds for damaged or foreign files
        reason = "not a checkpoint, damaged, or holds code that is never executed"
        raise UserError(path, reason, "give a .pth written by phase1_training") from error
    if not isinstance(checkpoint, dict) or "model_state_dict" not in checkpoint:
        raise UserError(path, "not a checkpoint of this project", "give one by phase1_training")
    return checkpoint


def sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".json") if path.suffix != ".pth" else path.with_suffix(".json")
