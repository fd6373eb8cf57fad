"""Which files of a package are missing, changed, or none of its own.

Needs nothing but Python, so that a package whose other files are damaged can still say so. It finds
damage, not forgery: who changes a file can change the list as well.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

INFO = "package_info.json"
COPY_AGAIN = "copy the package again"
MAY_READ = "give yourself the right to read it, or copy the package again"


def file_findings(folder: Path) -> list[str]:
    """One line for each file that is not as package_info.json says."""
    try:
        files = json.loads((folder / INFO).read_text(encoding="utf-8"))["files"]
        if not all(is_inside(name) for name in files):
            raise ValueError
        return list(_compared(folder, files))
    except FileNotFoundError:
        return [f"{INFO}: is missing – {COPY_AGAIN}"]
    except OSError as error:
        return [f"{error.filename or INFO}: cannot be read ({error.strerror}) – {MAY_READ}"]
    except (KeyError, TypeError, AttributeError, ValueError):
        return [f"{INFO}: is damaged – {COPY_AGAIN}"]


def is_inside(name: str) -> bool:
    """Whether a listed name, as common/cli.py, leads to a file in the folder of the list."""
    parts = name.replace("\\", "/").split("/")
    return ":" not in name and not {"", ".", ".."} & set(parts)


def _compared(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for name, listed in files.items():
        if finding := _finding(folder / name, listed["sha256"]):
            yield f"{name}: {finding}"
    own_folders = {name.split("/")[0] for name in files if "/" in name}
    present = {path.relative_to(folder).as_posix() for path in _present(folder, own_folders)}
    for name in sorted(present - files.keys() - {INFO}):
        yield f"{name}: is not part of the package – move it elsewhere"


def _finding(path: Path, sha256: str) -> str | None:
    try:
        if not path.is_file():
            return f"is missing – {COPY_AGAIN}"
        return None if _sha256(path) == sha256 else f"differs from its sha256 – {COPY_AGAIN}"
    except OSError as error:
        return f"cannot be read ({error.strerror}) – {MAY_READ}"


def _present(folder: Path, own_folders: set[str]) -> Iterator[Path]:
    """Files beside detect.py, in the package's folders, and in others that could be imported.

    Folders with somebody's results, hidden ones such as .venv, and what Python compiled are
    nobody's concern.
    """
    for entry in folder.iterdir():
        if entry.name.startswith(".") or entry.name == "__pycache__":
            continue
        if not entry.is_dir():
            yield entry
        elif entry.name in own_folders or any(entry.glob("*.py")):
            inside = (path for path in entry.rglob("*") if not path.is_dir())
            yield from (path for path in inside if path.parent.name != "__pycache__")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
