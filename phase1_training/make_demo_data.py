"""Draws the demo data: street scenes in COCO format and a video with its ground-truth tracks.

    python phase1_training/make_demo_data.py
    python phase1_training/make_demo_data.py --train-images 1200 --overwrite
    python phase1_training/make_demo_data.py --seed 7 --output outputs/demo_seed_7

People, cars, buses and dogs move through streets, parks and squares. The validation pictures show
other kinds of places than the training pictures, the video another one again. The same options
give the same bytes, and data that is already there is not made twice.

Ground truth: a box encloses the whole silhouette of an object, hidden parts included, clipped to
the picture. Objects of which less than 15% is inside the picture, or less than a quarter of that
part is not hidden, are left out of it. Class ids are those of COCO (1, 3, 6, 18), so they have
gaps. The rows of demo_video_gt.txt are MOTChallenge's: frame from 1, track id, left, top, width,
height (pixels, from 0), 1, class id, visibility (the share of the object that is seen).
"""

import argparse
import contextlib
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from common import artifacts, cli, paths
from common.cli import UserError, log

if TYPE_CHECKING:
    from phase1_training.demo_scenes import Annotation

GENERATOR = 1  # raised with every change of the drawings, so that older data is not taken for new
TRAIN_IMAGES, VAL_IMAGES, VIDEO_FRAMES = 600, 100, 300
IMAGE_SIZES = ((320, 240), (480, 320), (640, 360), (768, 432))
VIDEO_SIZE, VIDEO_FPS = (768, 432), Fraction(12)
JPEG_QUALITY = 90
# Separate random streams, so that more pictures of one part leave the other parts unchanged.
STREAMS = {"train": 0, "val": 1, "video": 2}
VAL_FIRST_ID = 100_001  # picture ids are unique over both splits
MANIFEST = "demo_data.json"


def make_demo_data(
    output: Path,
    *,
    train_images: int = TRAIN_IMAGES,
    val_images: int = VAL_IMAGES,
    video_frames: int = VIDEO_FRAMES,
    seed: int = 0,
    overwrite: bool = False,
) -> bool:
    """Makes the demo data in the folder `output`, all of it or nothing.

    Returns:
        False when the folder already holds complete data made with the same options.

    Raises:
        UserError: a negative seed; `output` holds other files, or data made with other options
            and `overwrite` is not given; `output` cannot be written.
    """
    if seed < 0:
        raise UserError("--seed", f"{seed} is negative", "give 0 or more")
    output = Path(output).resolve()
    settings = {
        "generator": GENERATOR,
        "seed": seed,
        "train_images": train_images,
        "val_images": val_images,
        "video_frames": video_frames,
    }
    if _already_there(output, settings) and not overwrite:
        return False
    _check_replaceable(output, settings, overwrite)
    with _replaced_folder(output) as folder:
        _write_split(folder, "train", train_images, seed)
        _write_split(folder, "val", val_images, seed)
        _write_video(folder, video_frames, seed)
        # No time or machine in it: equal options give an equal folder.
        files = {name: artifacts.sha256(folder / name) for name in _files_in(folder)}
        artifacts.write_json(
            folder / MANIFEST, {"schema": "demo_data/1", "settings": settings, "files": files}
        )
    return True


def _files_in(folder: Path) -> list[str]:
    found = (path for path in folder.rglob("*") if path.is_file() or path.is_symlink())
    return sorted(path.relative_to(folder).as_posix() for path in found)


def _already_there(output: Path, settings: dict[str, int]) -> bool:
    """Whether `output` holds every file of data made with these settings, undamaged."""
    if not (output / MANIFEST).is_file():
        return False
    manifest = _read_manifest(output)
    return manifest["settings"] == settings and all(
        (output / name).is_file() and artifacts.sha256(output / name) == digest
        for name, digest in manifest["files"].items()
    )


def _read_manifest(output: Path) -> dict[str, Any]:
    """Raises UserError when it is not what `make_demo_data` writes."""
    manifest = artifacts.read_json(output / MANIFEST)
    if not isinstance(manifest.get("files"), dict) or "settings" not in manifest:
        remedy = "delete the folder, or choose another --output"
        raise UserError(output / MANIFEST, "is damaged", remedy)
    return manifest


def _check_replaceable(output: Path, settings: dict[str, int], overwrite: bool) -> None:
    """Refuses to replace anything but demo data, and demo data of other options unasked."""
    if not output.exists():
        return
    if not output.is_dir():
        raise UserError(output, "is a file", "choose another --output")
    manifest: dict[str, Any] = {"settings": settings, "files": {}}
    if (output / MANIFEST).is_file():
        manifest = _read_manifest(output)
    foreign = set(_files_in(output)) - set(manifest["files"]) - {MANIFEST}
    if foreign:
        what = f"holds files that are not demo data ({min(foreign)})"
        raise UserError(output, what, "move them away or choose another --output")
    if manifest["settings"] != settings and not overwrite:
        what = "holds demo data made with other options"
        raise UserError(output, what, "add --overwrite or choose another --output")


@contextlib.contextmanager
def _replaced_folder(output: Path) -> Iterator[Path]:
    """Yields a new folder beside `output` that takes its place when the block succeeds."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".tmp-demo-", dir=output.parent))
    except OSError as error:
        what = f"cannot be written ({error.strerror})"
        raise UserError(output, what, "choose another --output") from error
    try:
        new, old = work / "new", work / "old"
        new.mkdir()
        yield new
        if output.exists():
            os.rename(output, old)
        try:
            os.rename(new, output)
        except OSError:
            if old.exists():
                os.rename(old, output)
            raise
    except OSError as error:  # a full disk, for instance
        what = f"cannot be written ({error.strerror or error})"
        raise UserError(output, what, "free some space or choose another --output") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _write_split(folder: Path, split: str, count: int, seed: int) -> None:
    """Writes images/SPLIT/*.jpg and annotations/instances_SPLIT.json."""
    import cv2
    import numpy as np

    from phase1_training.demo_backgrounds import TRAIN_STYLES, VAL_STYLES
    from phase1_training.demo_scenes import random_scene

    styles = TRAIN_STYLES if split == "train" else VAL_STYLES
    first_id = 1 if split == "train" else VAL_FIRST_ID
    (folder / "images" / split).mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in cli.progress(range(count), total=count, label=f"Drawing {split} pictures"):
        rng = np.random.default_rng((seed, STREAMS[split], index))
        width, height = IMAGE_SIZES[rng.integers(len(IMAGE_SIZES))]
        picture, objects = random_scene(rng, styles, width, height)
        file_name = f"{split}/{index + 1:06d}.jpg"
        encoded = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
        (folder / "images" / file_name).write_bytes(encoded.tobytes())
        images.append(
            {
                "id": first_id + index,
                "file_name": file_name,
                "width": width,
                "height": height,
                "license": 1,
            }
        )
        for item in objects:
            annotations.append(_coco_annotation(item, len(annotations) + 1, first_id + index))
    content = {**_coco_header(split), "images": images, "annotations": annotations}
    artifacts.write_json(folder / "annotations" / f"instances_{split}.json", content)


def _coco_header(split: str) -> dict[str, Any]:
    from phase1_training.demo_sprites import CATEGORIES

    return {
        "info": {
            "description": f"Drawn street scenes, {split} split",
            "version": f"{GENERATOR}.0",
            "year": 2026,
            "contributor": "phase1_training/make_demo_data.py",
            "date_created": "2026-01-01",
        },
        "licenses": [
            {
                "id": 1,
                "name": "CC0 1.0",
                "url": "https://creativecommons.org/publicdomain/zero/1.0/",
            }
        ],
        "categories": [
            {"id": category.id, "name": category.name, "supercategory": category.supercategory}
            for category in CATEGORIES
        ],
    }


def _coco_annotation(item: "Annotation", annotation_id: int, image_id: int) -> dict[str, Any]:
    """`area` counts the pixels of the object that are seen, as COCO's masks do."""
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": item.category_id,
        "bbox": list(item.box_xywh),
        "area": item.area,
        "iscrowd": 0,
        "visibility": round(item.visibility, 4),
    }


def _write_video(folder: Path, frame_count: int, seed: int) -> None:
    """Writes demo_video.mp4 and demo_video_gt.txt."""
    import numpy as np

    from common.video import VideoWriter
    from phase1_training.demo_backgrounds import VIDEO_STYLE
    from phase1_training.demo_scenes import VideoScene

    scene = VideoScene(np.random.default_rng((seed, STREAMS["video"])), VIDEO_STYLE, *VIDEO_SIZE)
    rows = []
    with VideoWriter(folder / "demo_video.mp4", *VIDEO_SIZE, VIDEO_FPS) as writer:
        for index in cli.progress(range(frame_count), total=frame_count, label="Drawing the video"):
            frame, objects = scene.step()
            writer.write(frame)
            for item in objects:
                box = ",".join(str(value) for value in item.box_xywh)
                rows.append(
                    f"{index + 1},{item.track_id},{box},1,{item.category_id},{item.visibility:.4f}"
                )
    artifacts.write_text(folder / "demo_video_gt.txt", "\n".join(rows) + "\n")


def build_parser() -> argparse.ArgumentParser:
    parser = cli.ArgumentParser(__doc__)
    parser.add_argument(
        "--train-images", type=cli.positive_int, default=TRAIN_IMAGES, help="pictures to train on"
    )
    parser.add_argument(
        "--val-images", type=cli.positive_int, default=VAL_IMAGES, help="pictures to validate on"
    )
    parser.add_argument(
        "--video-frames", type=cli.positive_int, default=VIDEO_FRAMES, help="at 12 a second"
    )
    parser.add_argument("--overwrite", action="store_true", help="make it again in any case")
    cli.add_common_arguments(parser, output=paths.DEMO, output_help="folder of the demo data")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return cli.run(
        lambda: run(
            args.output,
            train_images=args.train_images,
            val_images=args.val_images,
            video_frames=args.video_frames,
            seed=args.seed,
            overwrite=args.overwrite,
        ),
        args,
    )


def run(output: Path, **options: Any) -> None:
    saved: list[Path] = []
    if make_demo_data(output, **options):
        names = ("annotations", "images", "demo_video.mp4", "demo_video_gt.txt")
        saved = [output / name for name in names]
    else:
        log.info("%s is complete; --overwrite makes it again", paths.display(output))
    words = ["python", "phase1_training/train.py"]
    if output.resolve() != paths.DEMO:
        words += ["--data-path", paths.display(output)]
    cli.finished(saved, shlex.join(words))


if __name__ == "__main__":
    sys.exit(main())
