"""Writes a repaired copy of an annotation file; the file itself and the images stay as they are."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common import artifacts
from common.cli import UserError
from common.coco_files import annotation_patterns, find_annotations, read_annotations
from common.coco_format import ParsedFile, parse_content
from common.coco_table import NUMBERS, AnnotationTable, with_whole_numbers
from phase1_training import data_boxes, data_checks
from phase1_training.data_ids import with_numeric_ids
from phase1_training.image_checks import Picture, read_pictures

Content = dict[str, Any]
Change = dict[str, Any]


def fix(
    data_path: Path, split: str, new_file: Path, *, workers: int = 0, cache: Path | None = None
) -> list[Change]:
    """Repairs the annotations of a split as far as that needs no guess.

    What cannot be used is left out, boxes are converted and clipped, sizes corrected from the
    files, ids read from text and numbered, iscrowd and area filled in. All other keys are kept.

    Args:
        new_file: written; it must not exist, nor lie where it would be taken for annotations.
        workers, cache: of `image_checks.read_pictures`.

    Returns:
        What was changed, each with `change`, `image`, `annotation_id` and `message`.

    Raises:
        UserError: nothing can be repaired, the boxes fit several formats or none, no annotation
            would be left, or `new_file` would replace or shadow an input.
    """
    _refuse_target(data_path, new_file)
    annotation_file = find_annotations(data_path, split)
    content, numbered = with_numeric_ids(with_whole_numbers(read_annotations(annotation_file)))
    parsed = parse_content(data_path, annotation_file, content)
    if parsed.split is None or not parsed.split.class_names:
        what = f"cannot be repaired: {parsed.problems[0].message}"
        raise UserError(annotation_file, what, "export it anew")
    changes: list[Change] = []
    for message in numbered:
        _changed(changes, "text read as numbers", message)
    count = len(content["annotations"])
    files = [record.path for record in parsed.split.records]
    pictures = read_pictures(files, workers=workers, cache=cache, label=f"{split} images")
    content = _usable_entries(content, parsed, pictures, changes)
    if not content["images"]:
        raise UserError(annotation_file, "no image can be used", "export it anew")
    parsed = parse_content(data_path, annotation_file, content)
    content["annotations"] = _annotations(parsed, changes)
    if count and not content["annotations"]:
        first = next(row["message"] for row in changes if row["change"] == "annotation left out")
        what = f"none of its {count} annotations can be used, the first one: {first}"
        raise UserError(annotation_file, what, "export it anew")
    artifacts.write_text(new_file, _dump(content, changes))
    return changes


def _refuse_target(data_path: Path, new_file: Path) -> None:
    if new_file.exists():
        raise UserError(new_file, "exists and is not replaced", "choose another name for --fix")
    target, folder = new_file.resolve(), data_path.resolve()
    patterns = [p for split in ("train", "val") for p in annotation_patterns(split)]
    if target.is_relative_to(folder) and any(target.match(pattern) for pattern in patterns):
        remedy = "choose a --fix outside of the data folder"
        raise UserError(new_file, "would be taken for annotations of the data", remedy)


def _changed(
    changes: list[Change], change: str, message: str, image: Any = None, annotation: Any = None
) -> None:
    name = image.get("file_name") if image else None
    number = annotation.get("id") if annotation else None
    row = {"change": change, "image": name, "annotation_id": number, "message": message}
    changes.append(row)


# --- images and categories --------------------------------------------------------------------


def _usable_entries(
    content: Content,
    parsed: ParsedFile,
    pictures: Sequence[Picture | str],
    changes: list[Change],
) -> Content:
    """The content with what can be read: images with their true sizes, known categories, and the
    annotations that belong to them."""
    used = {id(image): picture for image, picture in zip(parsed.images, pictures, strict=True)}
    ambiguous = _ambiguous_ids(content["images"])
    images: dict[int, dict] = {}
    scales: dict[int, tuple[float, float]] = {}
    moved: dict[int, int] = {}  # image id -> the id under which the same file is listed first
    first: dict[str, int] = {}
    for image in content["images"]:
        picture = used.get(id(image))
        if not isinstance(picture, Picture):
            _changed(changes, "image left out", picture or "cannot be used as listed", image)
        elif image["id"] in ambiguous:
            _changed(changes, "image left out", "two pictures have this id", image)
        elif image["file_name"] in first:
            moved[image["id"]] = first[image["file_name"]]
            _changed(changes, "image merged", "listed under two ids", image)
        else:
            first[image["file_name"]] = image["id"]
            images[image["id"]], scales[image["id"]] = _true_size(image, picture, changes)
    categories = _usable_categories(content["categories"], changes)
    annotations = _usable_annotations(parsed, images, moved, scales, changes)
    kept = {id(entry) for entry in parsed.table.entries}
    for annotation in content["annotations"]:
        if id(annotation) not in kept:
            message = f"image {annotation.get('image_id')!r:.40}, category "
            message += f"{annotation.get('category_id')!r:.40}, bbox {annotation.get('bbox')!r:.60}"
            _changed(changes, "annotation left out", f"cannot be used: {message}", None, annotation)
    return {
        **content,
        "images": list(images.values()),
        "annotations": annotations,
        "categories": categories,
    }


def _ambiguous_ids(images: Sequence[dict]) -> set[int]:
    """Ids of several pictures: nobody knows whose their boxes are."""
    names: dict[int, Any] = {}
    return {
        image["id"]
        for image in images
        if isinstance(image.get("id"), int)
        and names.setdefault(image["id"], image.get("file_name")) != image.get("file_name")
    }


def _usable_categories(entries: Sequence[dict], changes: list[Change]) -> list[dict]:
    kept: dict[int, dict] = {}
    for entry in entries:
        number = entry.get("id")
        named = isinstance(entry.get("name"), str)
        if named and type(number) is int and number not in kept:
            kept[number] = entry
        else:
            _changed(changes, "category left out", f"no id or name of its own: {entry!r:.80}")
    return list(kept.values())


def _true_size(
    image: dict, picture: Picture, changes: list[Change]
) -> tuple[dict, tuple[float, float]]:
    """The image with the size of its file, and the factors its boxes have to be scaled by.

    A file of the same shape was resized after it was annotated, so its boxes are scaled; else the
    size was written wrongly.
    """
    annotated, size = (image["width"], image["height"]), (picture.width, picture.height)
    if annotated in (size, picture.stored_size):
        return image, (1.0, 1.0)
    factors = size[0] / annotated[0], size[1] / annotated[1]
    # One factor for both sides, up to the rounding of each to whole pixels; a pixel more or less
    # is no resize.
    rounding = 1 / min(*annotated, *size)
    resized = math.isclose(*factors, rel_tol=rounding) and abs(factors[0] - 1) > 2 * rounding
    message = f"{annotated[0]}x{annotated[1]} becomes {size[0]}x{size[1]}"
    if resized:
        message += ", and its boxes are scaled by as much; their outlines are left out"
    _changed(changes, "size corrected", message, image)
    corrected = {**image, "width": size[0], "height": size[1]}
    return corrected, factors if resized else (1.0, 1.0)


# --- annotations ------------------------------------------------------------------------------


def _usable_annotations(
    parsed: ParsedFile,
    images: dict[int, dict],
    moved: dict[int, int],
    scales: dict[int, tuple[float, float]],
    changes: list[Change],
) -> list[dict]:
    """The annotations of `images`, their boxes as x, y, width, height of the file's pixels."""
    found = _box_format(parsed, images, scales)
    if not found.is_xywh:
        _changed(changes, "boxes converted", data_boxes.conversion(found))
    kept = []
    for index, box in enumerate(found.boxes_xywh.tolist()):
        entry = parsed.table.entries[index]
        image_id = moved.get(entry["image_id"], entry["image_id"])
        if image_id not in images:
            _changed(changes, "annotation left out", "its image is left out", None, entry)
            continue
        entry = {**entry, "image_id": image_id}
        if any(new != old for new, old in zip(box, entry["bbox"], strict=True)):
            _drop_derived(entry, parsed.table, index, found.normalised)
            entry["bbox"] = box
        if scales[image_id] != (1.0, 1.0):
            x, y = scales[image_id]
            entry["bbox"] = [box[0] * x, box[1] * y, box[2] * x, box[3] * y]
            entry.pop("segmentation", None)
            entry.pop("area", None)
        kept.append(entry)
    return kept


def _box_format(
    parsed: ParsedFile, images: dict[int, dict], scales: dict[int, tuple[float, float]]
) -> data_boxes.BoxFormat:
    """Judged by the true sizes of the images, unless boxes are of the size before a resize."""
    sizes = [
        images[image["id"]] if scales.get(image["id"]) == (1.0, 1.0) else image
        for image in parsed.images
    ]
    limits_wh = data_boxes.sizes_wh(sizes)[parsed.table.image_index]
    found = data_boxes.box_format(parsed.table.boxes_xywh, limits_wh)
    if len(found.readings) != 1:
        assert parsed.split is not None
        remedy = "export them as x,y,width,height in pixels"
        raise UserError(parsed.split.annotation_file, data_boxes.refusal(found), remedy)
    return found


def _drop_derived(entry: dict, table: AnnotationTable, index: int, normalised: bool) -> None:
    """Drops what was computed from the numbers of a box in another format, or normalised too."""
    area, (width, height) = table.areas[index], table.boxes_xywh[index, 2:].tolist()
    if (normalised and area <= 1) or math.isclose(area, width * height, rel_tol=1e-6):
        entry.pop("area", None)
    outlines = entry.get("segmentation")
    if normalised and isinstance(outlines, list):
        numbers = [n for part in outlines if isinstance(part, list) for n in part]
        if all(type(n) in NUMBERS and n <= data_boxes.UNIT for n in numbers):
            del entry["segmentation"]


def _annotations(parsed: ParsedFile, changes: list[Change]) -> list[dict]:
    """Clipped, without repeats, with ids from 1 on of their own, iscrowd and area."""
    table = parsed.table
    repeated = data_checks.repeated_boxes(parsed)
    numbers = [number for entry in table.entries if type(number := entry.get("id")) is int]
    unused = max(numbers, default=0)
    taken: set[Any] = {0}
    kept = []
    for index, entry in enumerate(table.entries):
        image = parsed.images[table.image_index[index]]
        if not parsed.usable[index] or repeated[index]:
            reason = "repeats another" if parsed.usable[index] else "no area inside the image"
            message = f"box {entry['bbox']!r:.80}: {reason}"
            _changed(changes, "annotation left out", message, image, entry)
            continue
        entry = _clipped(entry, parsed.boxes_xyxy[index], image, changes)
        if type(entry.get("id")) is not int or entry["id"] in taken:
            unused = max(unused, 0) + 1
            _changed(changes, "annotation numbered", f"its id is {unused} now", image, entry)
            entry = {**entry, "id": unused}
        taken.add(entry["id"])
        kept.append(_completed(entry, bool(table.is_crowd[index]), image, changes))
    return kept


def _clipped(entry: dict, box: np.ndarray, image: dict, changes: list[Change]) -> dict:
    x, y, w, h = entry["bbox"]
    x1, y1, x2, y2 = box.tolist()
    if (x1, y1, x2, y2) == (x, y, x + w, y + h):
        return entry
    message = f"box {entry['bbox']!r:.80} is clipped to the image"
    _changed(changes, "box clipped", message, image, entry)
    return {**entry, "bbox": [x1, y1, x2 - x1, y2 - y1]}


def _completed(entry: dict, is_crowd: bool, image: dict, changes: list[Change]) -> dict:
    """With iscrowd and an area that can be one."""
    entry = dict(entry)
    if type(entry.get("iscrowd")) is not int or entry["iscrowd"] not in (0, 1):
        entry["iscrowd"] = int(is_crowd)
        _changed(changes, "iscrowd filled in", f"iscrowd is {entry['iscrowd']}", image, entry)
    area: Any = entry.get("area")
    box_area = entry["bbox"][2] * entry["bbox"][3]
    if type(area) not in NUMBERS or not 0 < area <= image["width"] * image["height"]:
        entry["area"] = box_area
        _changed(changes, "area filled in", f"area is {box_area:g}, the box's", image, entry)
    return entry


# --- writing ----------------------------------------------------------------------------------


def _dump(content: Content, changes: list[Change]) -> str:
    """JSON; a NaN or an infinity outside of the boxes, which JSON does not have, becomes null."""
    try:
        return json.dumps(content, allow_nan=False, ensure_ascii=False) + "\n"
    except ValueError:
        _changed(changes, "number removed", "a NaN or infinity outside of the boxes is null now")
        return json.dumps(_without_nan(content), allow_nan=False, ensure_ascii=False) + "\n"


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_without_nan(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
