"""Decodes every image once: unreadable ones, another size than annotated, a picture twice.

What is learnt of a file is kept in a cache, so that the next check reads only files that changed.
"""

import functools
import hashlib
import os
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from common import artifacts, cli, coco, paths
from common.cli import UserError, log
from common.coco_format import ParsedFile, Problem

EXIF_ORIENTATION = 0x0112
CHUNK = 256  # images handed to the threads at once: an interrupt waits for none of the others


class Picture(NamedTuple):
    """A decoded image: the size of its upright pixels, its EXIF orientation (1: stored upright, 5
    to 8: a quarter turn) and a hash of its upright pixels, which is the same in every lossless
    encoding."""

    width: int
    height: int
    orientation: int
    digest: str

    @property
    def stored_size(self) -> tuple[int, int]:
        upright = (self.width, self.height)
        return upright[::-1] if self.orientation >= 5 else upright


def read_pictures(
    files: Sequence[Path], *, workers: int, cache: Path | None, label: str
) -> list[Picture | str]:
    """Decodes images in `workers` threads; Pillow works outside of Python's lock.

    Args:
        workers: 0 decodes in the calling thread.
        cache: JSON file of what is known of files by path, size and time of change; it is brought
            up to date, also when the reading is interrupted.

    Returns:
        A Picture for each file, or one line that says why it cannot be used.
    """
    known = _load_cache(cache)
    stamps = [_stamp(file, cache) for file in files]
    found: dict[int, Picture | str] = {}
    for index, (key, stamp) in enumerate(stamps):
        row = known.get(key)
        if stamp is not None and row is not None and tuple(row[:2]) == stamp:
            found[index] = Picture(*row[2:])
    missing = [index for index in range(len(files)) if index not in found]
    results = _decode([files[index] for index in missing], workers)
    try:
        pairs = zip(missing, results, strict=True)
        for index, picture in cli.progress(pairs, total=len(missing), label=label):
            found[index] = picture
            key, stamp = stamps[index]
            if stamp is not None and isinstance(picture, Picture):  # a failure may be mended
                known[key] = [*stamp, *picture]
    finally:
        results.close()
        if cache is not None and missing:
            artifacts.write_json(cache, {"schema": "image_cache/1", "images": known})
    return [found[index] for index in range(len(files))]


def _stamp(file: Path, cache: Path | None) -> tuple[str, tuple[int, int] | None]:
    """The key of a file in the cache, and its size in bytes with its time of change."""
    if cache is None:
        return "", None
    try:
        status = os.stat(file)
    except (OSError, ValueError):  # decoding says what is wrong with it
        return "", None
    folder, name = os.path.split(file)
    return os.path.join(_relative(folder, cache), name), (status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=1000)
def _relative(folder: str, cache: Path) -> str:
    return os.path.relpath(folder, cache.resolve().parent)


def _load_cache(cache: Path | None) -> dict[str, list]:
    if cache is None or not cache.is_file():
        return {}
    try:
        images = artifacts.read_json(cache).get("images")
    except UserError as error:
        log.info("Every image is read anew: %s", error)
        return {}
    rows = images.items() if isinstance(images, dict) else ()
    kinds = [int, int, int, int, int, str]
    return {key: row for key, row in rows if isinstance(row, list) and [*map(type, row)] == kinds}


def _decode(files: Sequence[Path], workers: int) -> Generator[Picture | str, None, None]:
    if workers == 0:
        yield from map(_picture, files)
        return
    executor = ThreadPoolExecutor(workers)
    try:
        for start in range(0, len(files), CHUNK):
            yield from executor.map(_picture, files[start : start + CHUNK])
    finally:  # Ctrl-C does not wait for the rest
        executor.shutdown(wait=False, cancel_futures=True)


def _picture(file: Path) -> Picture | str:
    from PIL import Image

    try:
        pixels = coco.read_image(file)
    except UserError as error:
        reason = str(error).removeprefix(f"{paths.display(file)}: ")
        return reason.replace(f" {str(file)!r}", "")  # Pillow repeats the whole path
    with Image.open(file) as image:
        orientation = image.getexif().get(EXIF_ORIENTATION)
    digest = hashlib.blake2b(repr(pixels.shape).encode(), digest_size=16)
    digest.update(pixels.data)
    known = isinstance(orientation, int) and 1 <= orientation <= 8
    height, width = pixels.shape[:2]
    return Picture(width, height, orientation if known else 1, digest.hexdigest())


def digest(pictures: Sequence[Picture | str]) -> str:
    """sha256 over the pixels of a split's images, in order: another picture, another digest."""
    found = hashlib.sha256()
    for picture in pictures:
        found.update(picture.digest.encode() if isinstance(picture, Picture) else b"unreadable")
    return found.hexdigest()


# --- findings ---------------------------------------------------------------------------------


def picture_problems(
    splits: Mapping[str, ParsedFile], pictures: Mapping[str, Sequence[Picture | str]]
) -> dict[str, list[Problem]]:
    """What is wrong with the images of each split, given the Picture of each of its records."""
    first_seen: dict[str, tuple[str, str, Path]] = {}  # digest -> split, name and file
    problems: dict[str, list[Problem]] = {}
    for split, parsed in splits.items():
        found = problems[split] = []
        records = parsed.split.records if parsed.split else ()
        for entry, record, picture in zip(parsed.images, records, pictures[split], strict=True):
            name = entry["file_name"]
            if isinstance(picture, str):
                message = f"{picture}; it would stop the training"
                found.append(Problem("unreadable image", "error", message, name))
                continue
            found += _size_problems(picture, name, (record.width, record.height))
            seen = first_seen.setdefault(picture.digest, (split, name, record.path))
            if seen[0] != split:
                message = f"the same picture as {seen[1]} in {seen[0]}: the val scores flatter"
                found.append(Problem("leakage", "warning", message, name))
            elif seen[2] != record.path:
                message = f"the same picture as {seen[1]}: counts twice, and holding one of them "
                message += "out for validation would be leakage"
                found.append(Problem("duplicate image", "warning", message, name))
    return problems


def _size_problems(picture: Picture, name: str, annotated: tuple[int, int]) -> list[Problem]:
    upright = (picture.width, picture.height)
    stored = picture.stored_size
    if annotated not in (upright, stored):
        message = f"is {upright[0]}x{upright[1]}, the annotations say {annotated[0]}x"
        message += f"{annotated[1]}: the boxes would lie elsewhere"
        return [Problem("image size", "error", message, name)]
    turned = f"EXIF orientation {picture.orientation}: "
    if annotated != upright:
        message = turned + "annotated as stored and read so here; other tools turn it upright"
        return [Problem("EXIF rotation", "warning", message, name)]
    if picture.orientation > 1 and upright == stored:
        message = turned + "taken as annotated upright; look whether its boxes fit"
        return [Problem("EXIF rotation", "warning", message, name)]
    return []
