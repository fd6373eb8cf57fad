"""Small COCO data sets, right and wrong ones."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CATEGORIES = [{"id": 3, "name": "disc"}, {"id": 7, "name": "box"}]


def image(image_id: int = 1, file_name: str = "a.png", width: int = 40, height: int = 30) -> dict:
    return {"id": image_id, "file_name": file_name, "width": width, "height": height}


def annotation(bbox: Any, annotation_id: Any = 1, image_id: Any = 1, **more: Any) -> dict:
    return {"id": annotation_id, "image_id": image_id, "category_id": 3, "bbox": bbox, **more}


def write_annotations(
    folder: Path,
    *annotations: dict,
    images: list | None = None,
    categories: list | None = None,
    split: str = "train",
) -> Path:
    """Writes annotations/instances_SPLIT.json below `folder` and returns `folder`."""
    content = {
        "images": [image()] if images is None else images,
        "annotations": list(annotations),
        "categories": CATEGORIES if categories is None else categories,
    }
    path = folder / "annotations" / f"instances_{split}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return folder


def write_shapes(folder: Path, *, splits: dict[str, int], seed: int = 0) -> Path:
    """Noise pictures of 64x48 with one bright disc-coloured or box-coloured rectangle each; the
    last picture of a split has none. Returns `folder`."""
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    for split, count in splits.items():
        images, annotations = [], []
        for index in range(count):
            pixels = rng.integers(0, 80, (48, 64, 3), np.uint8)
            name = f"{split}_{index}.png"
            images.append(image(index + 1, name, 64, 48))
            if index < count - 1 or count == 1:
                x, y = (int(value) for value in rng.integers(2, 24, 2))
                kind = int(rng.integers(2))
                pixels[y : y + 18, x : x + 22] = ((230, 60, 40), (40, 90, 230))[kind]
                box = annotation([x, y, 22, 18], index + 1, index + 1)
                annotations.append({**box, "category_id": CATEGORIES[kind]["id"]})
            Image.fromarray(pixels).save(folder / "images" / name)
        write_annotations(folder, *annotations, images=images, split=split)
    return folder
