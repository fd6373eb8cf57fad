"""A Python that has a few packages and nothing else, made without a network.

    python = make(folder, requirement_names(REQUIREMENTS))
    subprocess.run([python, "-I", "detect.py", ...])

It is a virtual environment in which the installed packages that are asked for, and what these
require, are linked one by one. Everything else that is installed here, PyTorch for one, does not
exist for it.
"""

import importlib.metadata
import os
import re
import shutil
import venv
from collections.abc import Iterable
from pathlib import Path

ALTERNATIVES = {  # packages with the same modules inside
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "opencv-python": ("opencv-python", "opencv-python-headless"),
}


def requirement_names(text: str) -> list[str]:
    """`numpy>=1.26  # arrays` -> numpy, for each line of a requirements file."""
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    return [re.split(r"[^\w.-]", line)[0] for line in lines if line]


def make(folder: Path, names: Iterable[str]) -> Path:
    """Makes the environment in `folder` and returns its interpreter.

    Raises:
        ImportError: a package is not installed here (importlib.metadata.PackageNotFoundError), or
            `packaging`, which reads what they require, is not.
    """
    venv.create(folder, with_pip=False, symlinks=os.name != "nt")
    site = next(folder.rglob("site-packages"))
    for package in _with_requirements(names):
        for entry in _entries(package):
            target = site / entry
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                _link(Path(str(package.locate_file(entry))), target)
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _with_requirements(names: Iterable[str]) -> list[importlib.metadata.Distribution]:
    """The packages, what they require, and so on."""
    from packaging.requirements import Requirement

    found: dict[str, importlib.metadata.Distribution] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found[name] = package = _distribution(name)
        for text in package.requires or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
    return list(found.values())


def _distribution(name: str) -> importlib.metadata.Distribution:
    for candidate in ALTERNATIVES.get(name, (name,)):
        try:
            return importlib.metadata.distribution(candidate)
        except importlib.metadata.PackageNotFoundError:
            continue
    raise importlib.metadata.PackageNotFoundError(name)


def _entries(package: importlib.metadata.Distribution) -> set[str]:
    """What to link of a package, relative to site-packages.

    Of a folder that several packages share (google/, without an __init__.py) only what is below.
    """
    entries = set()
    for file in package.files or ():
        if ".." in file.parts or file.parts[0] == "__pycache__":
            continue  # commands
        top = Path(str(package.locate_file(file.parts[0])))
        is_shared = top.is_dir() and top.suffix == "" and not (top / "__init__.py").exists()
        entries.add("/".join(file.parts[: 2 if is_shared else 1]))
    return entries


def _link(source: Path, target: Path) -> None:
    """A link; a copy where the system allows nobody to link."""
    try:
        target.symlink_to(source)
    except OSError:
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copyfile(source, target)
