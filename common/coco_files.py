"""Where a COCO data set keeps its files, and which file names may be followed."""

import gc
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from common import artifacts, paths
from common.cli import UserError

SPLIT_NAMES = {"train": ("train",), "val": ("val", "valid", "validation")}
PROBED_IMAGES = 10  # looked for in each folder that may hold the images


class MissingSplitError(UserError):
    """The data folder has no annotation file of that split."""


def annotation_patterns(split: str) -> Iterator[str]:
    """Where the annotations of a split may lie below the data folder, in the order of search."""
    for name in SPLIT_NAMES[split]:
        yield f"annotations/instances_{name}*.json"
        yield f"annotations/{name}*.json"
        yield f"{name}/_annotations.coco.json"
        yield f"{name}.json"


def find_annotations(data_path: Path, split: str) -> Path:
    """The annotation file of a split below `data_path`.

    Understands the COCO layout (annotations/instances_train2017.json, any suffix), a flat
    train.json, and train/_annotations.coco.json.

    Raises:
        UserError: no such folder, or several files that could be meant.
        MissingSplitError: no such file.
    """
    if not data_path.is_dir():
        if data_path == paths.DEMO:
            remedy = "make the demo data with: python phase1_training/make_demo_data.py"
        else:
            remedy = "give the folder that holds annotations/ and the images"
        raise UserError(data_path, "no such folder", remedy)
    for pattern in annotation_patterns(split):
        found = sorted(data_path.glob(pattern))
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise UserError(data_path, f"several {split} files: {names}", "keep one of them")
        if found:
            return found[0]
    expected = f"annotations/instances_{split}.json"
    raise MissingSplitError(data_path, f"no {split} annotations", f"add {expected} in COCO format")


def read_annotations(annotation_file: Path) -> dict[str, Any]:
    """`artifacts.read_json` of a file that may hold millions of objects.

    While they are made, Python's garbage collector would go through all of them again and again:
    without it a file of 200 MB is read in little more than half of the time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return artifacts.read_json(annotation_file)
    finally:
        if was_enabled:
            gc.enable()


def find_image_root(data_path: Path, annotation_file: Path, file_names: Sequence[str]) -> Path:
    """The folder file names are relative to: the first candidate that holds one of the images."""
    split_name = annotation_file.stem.removeprefix("instances_")
    candidates = [
        data_path / "images",
        data_path / "images" / split_name,
        data_path / split_name,
        annotation_file.parent,
        data_path,
    ]
    for file_name in file_names[:PROBED_IMAGES]:
        for folder in candidates:
            if os.path.isfile(folder / file_name):
                return folder
    return next((folder for folder in candidates if folder.is_dir()), data_path)


def is_safe_name(name: str) -> bool:
    """A relative path without `..`, drive letters, NUL bytes or what no file system can store."""
    try:
        os.fsencode(name)
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    parts = name.replace("\\", "/").split("/")
    has_root = parts[0] == "" or name[1:2] == ":"  # /a, \\a, C:a; also the empty name
    return not has_root and "\0" not in name and ".." not in parts


def real_paths(root: Path, file_names: Sequence[str]) -> Iterator[Path | None]:
    """The files of the names, symbolic links followed; None for one that leads out of `root`."""
    real_root = os.path.realpath(root)
    below = os.path.join(real_root, "")
    folders: dict[str, str] = {}
    for file_name in file_names:
        folder, name = os.path.split(os.path.join(real_root, file_name))
        if folder not in folders:  # the links of a folder are followed once
            folders[folder] = os.path.realpath(folder)
        path = os.path.join(folders[folder], name)
        if name in ("", ".") or os.path.islink(path):
            path = os.path.realpath(path)
        yield Path(path) if path.startswith(below) else None
