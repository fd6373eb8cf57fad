"""Parsing COCO annotation files (https://cocodataset.org/#format-data).

Nothing a person's file contains is trusted: every problem is collected with the image or the
annotation it belongs to, so that `check_data.py` can list all of them and `coco.load_split` can
refuse a file that would crash a training or silently spoil it.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from common.coco_files import (
    find_annotations,
    find_image_root,
    is_safe_name,
    read_annotations,
    real_paths,
)
from common.coco_table import NUMBERS, AnnotationTable, with_whole_numbers

MAX_IMAGE_SIDE = 1_000_000  # pixels; float32 tells coordinates 1/16 apart up to there
MIN_BOX_SIDE = 0.1  # pixels; thinner boxes lose their area to float32 when resized or flipped
CRASH = "crash the training with SIGSEGV"


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
    """One finding. `error`: training would crash or learn something wrong; `warning`: handled, or
    worth a look; `note`: a fact, nothing to mend."""

    kind: str
    severity: str
    message: str
    image: str | None = None
    annotation_id: int | None = None


@dataclass(frozen=True)
class ParsedFile:
    """A split and what it was made of. Without a split the rest is empty.

    Attributes:
        images: the object of the file of each record.
        table: the annotations of those images; a record holds those that are `usable`.
        boxes_xyxy: float64 (N, 4), pixels, clipped to the image.
        usable: bool (N,), the clipped box has an area.
    """

    split: CocoSplit | None
    problems: list[Problem]
    images: list[dict]
    table: AnnotationTable
    boxes_xyxy: np.ndarray
    usable: np.ndarray


@dataclass
class _Findings:
    problems: list[Problem] = field(default_factory=list)

    def error(self, kind: str, message: str, image: Any = None, annotation: Any = None) -> None:
        self.problems.append(Problem(kind, "error", message, _name(image), _id(annotation)))

    def of(self, annotation: dict, kind: str, message: str, image: dict | None) -> None:
        """An error of one annotation."""
        self.error(kind, f"annotation {annotation.get('id')!r:.40}: {message}", image, annotation)

    def warning(self, kind: str, message: str, image: Any = None, annotation: Any = None) -> None:
        self.problems.append(Problem(kind, "warning", message, _name(image), _id(annotation)))


def _name(image: Any) -> str | None:
    return str(image.get("file_name", image.get("id"))) if isinstance(image, dict) else None


def _id(annotation: Any) -> int | None:
    value = annotation.get("id") if isinstance(annotation, dict) else None
    return value if isinstance(value, int) else None


# --- parsing ----------------------------------------------------------------------------------


def parse_split(data_path: Path, split: str) -> tuple[CocoSplit | None, list[Problem]]:
    """Reads the annotations of a split and lists every problem found in them.

    Returns:
        The split (None when its structure is beyond reading) and the problems in file order.
    """
    annotation_file = find_annotations(data_path, split)
    parsed = parse_content(data_path, annotation_file, read_annotations(annotation_file))
    return parsed.split, parsed.problems


def parse_content(data_path: Path, annotation_file: Path, content: dict[str, Any]) -> ParsedFile:
    """`parse_split` of a file's content, with the entries its records were made of."""
    findings = _Findings()
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            findings.error("structure", f'the list "{key}" is missing')
        elif not all(isinstance(entry, dict) for entry in content[key]):
            findings.error("structure", f'"{key}" holds entries that are not objects')
    if not findings.problems and not content["images"]:
        findings.error("structure", 'the data set is empty: "images" has no entry')
    if findings.problems:
        nothing = np.zeros((0, 4)), np.zeros(0, dtype=bool)
        return ParsedFile(None, findings.problems, [], AnnotationTable.of([], [], []), *nothing)

    content = with_whole_numbers(content)
    categories = _parse_categories(content["categories"], findings)
    images = _parse_images(content["images"], findings)
    files = _image_files(data_path, annotation_file, images, findings)
    table = _parse_annotations(content, files.keys(), categories, findings)
    entries = [images[image_id] for image_id in files]
    boxes, usable = _clip(table, entries, findings)
    if not content["annotations"]:
        findings.warning("no annotations", "no image has a box: only background will be learnt")
    split = CocoSplit(
        annotation_file,
        tuple(_records(entries, list(files.values()), table.part(usable), boxes[usable])),
        tuple(categories.values()),
        tuple(categories),
    )
    return ParsedFile(split, findings.problems, entries, table, boxes, usable)


def _parse_categories(entries: list[dict], findings: _Findings) -> dict[int, str]:
    """Category id -> name, in the order of the ids. Names are unique: a repeated one is told
    apart by its id (several exporters name a class like the group it belongs to)."""
    categories: dict[int, str] = {}
    for entry in entries:
        category_id, name = entry.get("id"), entry.get("name")
        if not _is_int(category_id) or not isinstance(name, str):
            findings.error("category", f"category {entry!r:.80} lacks an integer id or a name")
        elif category_id in categories:
            message = f"category id {category_id} appears twice: its boxes could be of either class"
            findings.error("category", message)
        else:
            if name in categories.values():
                unique = f"{name} ({category_id})"
                while unique in categories.values():
                    unique += f" ({category_id})"
                what = f"two categories are called {name!r}; one is shown as {unique!r}"
                findings.warning("category name", what)
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
            findings.error("image entry", f"image {name!r:.80} has no integer id", image)
        elif image["id"] in images:
            message = f"image id {image['id']} appears twice: its boxes could be of either picture"
            findings.error("duplicate image id", message, image)
        elif not isinstance(name, str) or not is_safe_name(name):
            message = f"file_name {name!r:.80} is not a path inside the data: "
            findings.error("path", f"{message}another file would be read", image)
        elif not all(_is_side(image.get(key)) for key in ("width", "height")):
            message = f"image {name}: width and height are not positive whole numbers"
            findings.error("image entry", message, image)
        else:
            if name in file_names:
                what = f"{name} is listed under two image ids: each teaches the boxes of the other"
                findings.warning("image listed twice", f"{what} as background", image)
            file_names.add(name)
            images[image["id"]] = image
    return images


def _told(number: Any) -> str:
    return f"{number!r:.40}" + (" (text, no number)" if isinstance(number, str) else "")


def _is_int(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_side(value: Any) -> bool:
    return _is_int(value) and 0 < value <= MAX_IMAGE_SIDE


def _image_files(
    data_path: Path, annotation_file: Path, images: dict[int, dict], findings: _Findings
) -> dict[int, Path]:
    """Image id -> its file, of the images whose file lies below the image folder."""
    names = [image["file_name"] for image in images.values()]
    root = find_image_root(data_path, annotation_file, names)
    files = {}
    for image, path in zip(images.values(), real_paths(root, names), strict=True):
        if path is None:
            message = f"file_name {image['file_name']!r} leaves the image folder"
            findings.error("path", f"{message}: another file would be read", image)
        else:
            files[image["id"]] = path
    return files


def _parse_annotations(
    content: dict[str, Any],
    image_ids: Iterable[int],
    categories: dict[int, str],
    findings: _Findings,
) -> AnnotationTable:
    """The annotations of a known image and category with four finite numbers."""
    positions = {image_id: index for index, image_id in enumerate(image_ids)}
    named = {image["id"]: image for image in content["images"] if _is_int(image.get("id"))}
    labels = {category_id: index + 1 for index, category_id in enumerate(categories)}
    rows: list[tuple[dict, int, int]] = []
    seen: set[int] = set()
    for annotation in content["annotations"]:
        annotation_id, box = annotation.get("id"), annotation.get("bbox")
        image_id, category_id = annotation.get("image_id"), annotation.get("category_id")
        image = named.get(image_id) if type(image_id) in NUMBERS else None
        if _is_int(annotation_id):
            if annotation_id in seen:
                message = f"annotation {annotation_id}: the id appears twice: COCO's evaluators "
                message += "keep one of the boxes; numbered anew here"
                findings.warning("duplicate annotation id", message, image, annotation)
            seen.add(annotation_id)
        if image is None:
            message = f"no image has the id {_told(image_id)}: the box would be left out"
            findings.of(annotation, "unknown image", message, image)
        elif type(category_id) not in NUMBERS or category_id not in labels:
            message = f"category id {_told(category_id)} is not among the categories: would crash "
            findings.of(annotation, "unknown category", f"{message}the training", image)
        elif type(box) is not list or len(box) != 4 or not NUMBERS.issuperset(map(type, box)):
            message = f"bbox {box!r:.60} is not four finite numbers: would crash the training"
            findings.of(annotation, "unreadable box", message, image)
        elif image_id in positions:  # else the image is refused already
            rows.append((annotation, positions[image_id], labels[category_id]))
    table = AnnotationTable.of(*(zip(*rows, strict=True) if rows else ([], [], [])))
    finite = np.isfinite(table.boxes_xywh).all(axis=1)
    for annotation in itertools.compress(table.entries, ~finite):
        what = f"bbox {annotation['bbox']!r:.60} is not four finite numbers"
        is_nan = any(value != value for value in annotation["bbox"])
        harm = "turn the loss into NaN" if is_nan else CRASH
        image = named[annotation["image_id"]]
        findings.of(annotation, "box not finite", f"{what}: would {harm}", image)
    return table.part(finite)


def _clip(
    table: AnnotationTable, images: Sequence[dict], findings: _Findings
) -> tuple[np.ndarray, np.ndarray]:
    """float64 xyxy boxes clipped to their images, and which of them have an area there."""
    sizes = np.array([(image["width"], image["height"]) for image in images], np.float64)
    limit = sizes.reshape(-1, 2)[table.image_index]
    start, side = table.boxes_xywh[:, :2], table.boxes_xywh[:, 2:]
    with np.errstate(over="ignore"):  # 1e308 + 1e308
        end = start + side
    boxes = np.hstack([np.maximum(start, 0.0), np.minimum(end, limit)])
    usable = (boxes[:, 2:] - boxes[:, :2] >= MIN_BOX_SIDE).all(axis=1)
    clipped = ((start < -1) | (end > limit + 1)).any(axis=1) & usable
    for index in np.flatnonzero(clipped | ~usable):
        annotation = table.entries[index]
        image = images[table.image_index[index]]
        what = f"annotation {annotation.get('id')!r:.40}: box {annotation['bbox']!r:.80}"
        if usable[index]:
            hint = "clipped (is it x1,y1,x2,y2 instead of x,y,width,height?)"
            message = f"{what} reaches outside; {hint}"
            findings.warning("box partly outside", message, image, annotation)
            continue
        kind = "box without area" if (side[index] < MIN_BOX_SIDE).any() else "box outside"
        message = f"{what} has no area inside the image; left out: its place teaches background"
        findings.warning(kind, message, image, annotation)
    return boxes, usable


def _records(
    images: Sequence[dict], files: Sequence[Path], table: AnnotationTable, boxes: np.ndarray
) -> Iterator[ImageRecord]:
    """One record an image; its arrays are parts of a few large ones, which loader processes share
    instead of copying."""
    order = np.argsort(table.image_index, kind="stable")
    boxes_xyxy = boxes[order].astype(np.float32)
    labels, is_crowd = table.labels[order], table.is_crowd[order]
    annotated = table.areas[order]
    box_areas = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).prod(axis=1)
    # The annotated area (of a mask, as a rule) where it can be one, else that of the box.
    possible = (annotated > 0) & (annotated <= MAX_IMAGE_SIDE**2)
    areas = np.where(possible, annotated, box_areas).astype(np.float32)
    ends = np.searchsorted(table.image_index[order], np.arange(len(images)), side="right").tolist()
    start = 0
    for image, path, end in zip(images, files, ends, strict=True):
        yield ImageRecord(
            image_id=image["id"],
            path=path,
            width=image["width"],
            height=image["height"],
            boxes_xyxy=boxes_xyxy[start:end],
            labels=labels[start:end],
            is_crowd=is_crowd[start:end],
            areas=areas[start:end],
        )
        start = end
