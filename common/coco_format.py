"""Finding and parsing COCO annotation files (https://cocodataset.org/#format-data).

Nothing a person's file contains is trusted: every problem is collected with the image or the
annotation it belongs to, so that `check_data.py` can list all of them and `coco.load_split` can
refuse a file that would crash a training or silently spoil it.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, TypeGuard

import numpy as np

from common import artifacts, paths
from common.cli import UserError

SPLIT_NAMES = {"train": ("train",), "val": ("val", "valid", "validation")}
MAX_IMAGE_SIDE = 1_000_000  # pixels; float32 tells coordinates 1/16 apart up to there
MIN_BOX_SIDE = 0.1  # pixels; thinner boxes lose their area to float32 when resized or flipped
PROBED_IMAGES = 10  # looked for in each folder that may hold the images


class MissingSplitError(UserError):
    """The data folder has no annotation file of that split."""


@dataclass(frozen=True)
class ImageRecord:
    """One image and its ground truth.

    Attributes:
        boxes_xyxy: float32 (N, 4), pixels, inside the image.
        labels: int64 (N,), from 1; 0 is the background.
        is_crowd: bool (N,); crowd regions are ignored in training and follow the crowd rule in
            evaluation.
        areas: float32 (N,), pixels squared, as annotated (box area when missing).
    """

    image_id: int
    path: Path
    width: int
    height: int
    boxes_xyxy: np.ndarray
    labels: np.ndarray
    is_crowd: np.ndarray
    areas: np.ndarray


@dataclass(frozen=True)
class CocoSplit:
    """One annotation file. Label k (from 1) is `class_names[k - 1]`, in the user's file
    `category_ids[k - 1]`."""

    annotation_file: Path
    records: tuple[ImageRecord, ...]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]


@dataclass(frozen=True)
class Problem:
    """One finding. `error`: training would crash or learn something wrong; `warning`: handled."""

    kind: str
    severity: str
    message: str
    image: str | None = None
    annotation_id: int | None = None


@dataclass
class _Findings:
    problems: list[Problem] = field(default_factory=list)

    def error(self, kind: str, message: str, image: Any = None, annotation: Any = None) -> None:
        self.problems.append(Problem(kind, "error", message, _name(image), _id(annotation)))

    def warning(self, kind: str, message: str, image: Any = None, annotation: Any = None) -> None:
        self.problems.append(Problem(kind, "warning", message, _name(image), _id(annotation)))


def _name(image: Any) -> str | None:
    return str(image.get("file_name", image.get("id"))) if isinstance(image, dict) else None


def _id(annotation: Any) -> int | None:
    value = annotation.get("id") if isinstance(annotation, dict) else None
    return value if isinstance(value, int) else None


# --- finding the files ------------------------------------------------------------------------


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
    for name in SPLIT_NAMES[split]:
        for pattern in (
            f"annotations/instances_{name}*.json",
            f"annotations/{name}*.json",
            f"{name}/_annotations.coco.json",
            f"{name}.json",
        ):
            found = sorted(data_path.glob(pattern))
            if len(found) > 1:
                names = ", ".join(path.name for path in found)
                raise UserError(data_path, f"several {split} files: {names}", "keep one of them")
            if found:
                return found[0]
    expected = f"annotations/instances_{split}.json"
    raise MissingSplitError(data_path, f"no {split} annotations", f"add {expected} in COCO format")


def _find_image_root(data_path: Path, annotation_file: Path, file_names: Sequence[str]) -> Path:
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


# --- parsing ----------------------------------------------------------------------------------


def parse_split(data_path: Path, split: str) -> tuple[CocoSplit | None, list[Problem]]:
    """Reads the annotations of a split and lists every problem found in them.

    Returns:
        The split (None when its structure is beyond reading) and the problems in file order.
    """
    annotation_file = find_annotations(data_path, split)
    content = artifacts.read_json(annotation_file)
    findings = _Findings()
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            findings.error("structure", f'the list "{key}" is missing')
        elif not all(isinstance(entry, dict) for entry in content[key]):
            findings.error("structure", f'"{key}" holds entries that are not objects')
    if not findings.problems and not content["images"]:
        findings.error("structure", 'the data set is empty: "images" has no entry')
    if findings.problems:
        return None, findings.problems

    categories = _parse_categories(content["categories"], findings)
    images = _parse_images(content["images"], findings)
    grouped = _group_annotations(content["annotations"], images, categories, findings)
    file_names = [image["file_name"] for image in images.values()]
    root = _find_image_root(data_path, annotation_file, file_names).resolve()
    labels = {category_id: index + 1 for index, category_id in enumerate(categories)}
    records = []
    for image_id, image in images.items():
        path = Path(os.path.realpath(root / image["file_name"]))
        if not path.is_relative_to(root):
            findings.error(
                "path", f"file_name {image['file_name']!r} leaves the image folder", image
            )
            continue
        records.append(_record(image, path, grouped.get(image_id, []), labels, findings))
    if not content["annotations"]:
        findings.warning("no annotations", "no image has a box: only background will be learnt")
    split_data = CocoSplit(
        annotation_file, tuple(records), tuple(categories.values()), tuple(categories)
    )
    return split_data, findings.problems


def _parse_categories(entries: list[dict], findings: _Findings) -> dict[int, str]:
    """Category id -> name, in the order of the ids. Names are unique: a repeated one is told
    apart by its id (several exporters name a class like the group it belongs to)."""
    categories: dict[int, str] = {}
    for entry in entries:
        category_id, name = entry.get("id"), entry.get("name")
        if not _is_int(category_id) or not isinstance(name, str):
            findings.error("category", f"category {entry!r:.80} lacks an integer id or a name")
        elif category_id in categories:
            findings.error("category", f"category id {category_id} appears twice")
        else:
            if name in categories.values():
                unique = f"{name} ({category_id})"
                while unique in categories.values():
                    unique += f" ({category_id})"
                what = f"two categories are called {name!r}; one is shown as {unique!r}"
                findings.warning("category", what)
                name = unique
            categories[category_id] = name
    if not categories:
        findings.error("category", '"categories" has no usable entry')
    return dict(sorted(categories.items()))


def _parse_images(entries: list[dict], findings: _Findings) -> dict[int, dict]:
    images: dict[int, dict] = {}
    file_names: set[str] = set()
    for image in entries:
        name = image.get("file_name")
        if not _is_int(image.get("id")):
            findings.error("image", f"image {name!r:.80} has no integer id", image)
        elif image["id"] in images:
            findings.error("image", f"image id {image['id']} appears twice", image)
        elif not isinstance(name, str) or not _is_safe_name(name):
            findings.error("path", f"file_name {name!r:.80} is not a path inside the data", image)
        elif not all(_is_side(image.get(key)) for key in ("width", "height")):
            message = f"image {name}: width and height are not positive whole numbers"
            findings.error("image", message, image)
        else:
            if name in file_names:
                findings.warning("image", f"{name} is listed under two image ids", image)
            file_names.add(name)
            images[image["id"]] = image
    return images


def _is_int(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_side(value: Any) -> bool:
    return _is_int(value) and 0 < value <= MAX_IMAGE_SIDE


def _is_safe_name(name: str) -> bool:
    """A relative path without `..`, drive letters, NUL bytes or what no file system can store."""
    try:
        os.fsencode(name)
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    return (
        bool(name)
        and "\0" not in name
        and not posix.is_absolute()
        and not windows.drive
        and not windows.root
        and ".." not in posix.parts
        and ".." not in windows.parts
    )


def _group_annotations(
    entries: list[dict], images: dict[int, dict], categories: dict[int, str], findings: _Findings
) -> dict[int, list[dict]]:
    """Image id -> its usable annotations."""
    grouped: dict[int, list[dict]] = {}
    seen: set[int] = set()
    for annotation in entries:
        annotation_id = _id(annotation)
        what = f"annotation {annotation.get('id')!r:.40}"
        image_id, category_id = annotation.get("image_id"), annotation.get("category_id")
        image = images.get(image_id) if _is_finite(image_id) else None  # type: ignore[arg-type]
        if annotation_id in seen:
            findings.warning("annotation", f"{what}: the id appears twice", image, annotation)
        if annotation_id is not None:
            seen.add(annotation_id)
        box = annotation.get("bbox")
        if image is None:
            message = f"{what}: no image has the id {image_id!r:.40}"
            findings.error("annotation", message, None, annotation)
        elif not _is_finite(category_id) or category_id not in categories:
            message = f"{what}: category id {category_id!r:.40} is not among the categories"
            findings.error("annotation", message, image, annotation)
        elif not isinstance(box, list) or len(box) != 4 or not all(map(_is_finite, box)):
            message = f"{what}: bbox {box!r:.60} is not four finite numbers"
            findings.error("box", message, image, annotation)
        else:
            grouped.setdefault(image["id"], []).append(annotation)
    return grouped


def _is_finite(value: Any) -> bool:
    """A number that a float can hold."""
    if isinstance(value, float):
        return math.isfinite(value)
    return _is_int(value) and abs(value) < 2**1023


def _record(
    image: dict, path: Path, annotations: list[dict], labels: dict[int, int], findings: _Findings
) -> ImageRecord:
    """Turns xywh into xyxy boxes clipped to the image; what then has no area is left out."""
    width, height = image["width"], image["height"]
    boxes, kept = [], []
    for annotation in annotations:
        x, y, w, h = annotation["bbox"]
        what = f"annotation {annotation.get('id')!r:.40}: box {annotation['bbox']!r:.80}"
        x1, y1 = max(x, 0.0), max(y, 0.0)
        x2, y2 = min(x + w, float(width)), min(y + h, float(height))
        if x2 - x1 < MIN_BOX_SIDE or y2 - y1 < MIN_BOX_SIDE:
            message = f"{what} has no area inside the image; left out"
            findings.warning("box", message, image, annotation)
        else:
            if x < -1 or y < -1 or x + w > width + 1 or y + h > height + 1:
                hint = "clipped (is it x1,y1,x2,y2 instead of x,y,width,height?)"
                findings.warning("box", f"{what} reaches outside; {hint}", image, annotation)
            boxes.append((x1, y1, x2, y2))
            kept.append(annotation)
    boxes_xyxy = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    box_areas = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).prod(axis=1)
    annotated = [_area(entry.get("area"), box) for entry, box in zip(kept, box_areas, strict=True)]
    return ImageRecord(
        image_id=image["id"],
        path=path,
        width=width,
        height=height,
        boxes_xyxy=boxes_xyxy,
        labels=np.array([labels[entry["category_id"]] for entry in kept], dtype=np.int64),
        is_crowd=np.array([entry.get("iscrowd", 0) == 1 for entry in kept], dtype=bool),
        areas=np.array(annotated, dtype=np.float32),
    )


def _area(annotated: Any, box_area: float) -> float:
    """The annotated area (of a mask, as a rule) where it can be one, else that of the box."""
    if not _is_finite(annotated) or not 0 < annotated <= MAX_IMAGE_SIDE**2:
        return box_area
    return annotated
