"""A tiny detector with random weights and a tiny COCO data set; nothing here takes a second."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from phase2_optimization import benchmark_inference
from phase2_optimization.variants import VARIANTS

CATEGORIES = [{"id": 3, "name": "disc"}, {"id": 7, "name": "box"}]


def _write_split(folder, split: str, sizes: list[tuple[int, int]], seed: int) -> None:
    random = np.random.default_rng(seed)
    images, annotations = [], []
    for index, (width, height) in enumerate(sizes):
        pixels = random.integers(0, 255, (height, width, 3), dtype=np.uint8)
        name = f"{split}_{index}.png"
        (folder / "images").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / "images" / name)
        images.append({"id": index + 1, "file_name": name, "width": width, "height": height})
        for box in range(2):
            annotations.append(
                {
                    "id": 10 * index + box + 1,
                    "image_id": index + 1,
                    "category_id": CATEGORIES[box]["id"],
                    "bbox": [4 + 20 * box, 6, 16, 20],
                    "area": 320,
                    "iscrowd": 0,
                }
            )
    (folder / "annotations").mkdir(exist_ok=True)
    content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    file = folder / "annotations" / f"instances_{split}.json"
    file.write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture(scope="session")
def data_path(tmp_path_factory):
    """Six training images, and four for validation of which three have one size."""
    folder = tmp_path_factory.mktemp("coco")
    _write_split(folder, "train", [(64, 48)] * 6, seed=1)
    _write_split(folder, "val", [(64, 48), (48, 64), (64, 48), (64, 48)], seed=2)
    return folder


@pytest.fixture(scope="session")
def model_path(tmp_path_factory):
    from common.models import save_model
    from tests.random_detectors import random_detector

    model = random_detector("demo", num_classes=3, min_size=64, max_size=96)
    rpn_head, predictor = model.rpn.head, model.roi_heads.box_predictor
    rpn_head.cls_logits = rpn_head.cls_logits[0]  # without the bound, which a checkpoint lacks
    predictor.cls_score = predictor.cls_score[0]
    path = tmp_path_factory.mktemp("models") / "tiny.pth"
    save_model(
        path,
        model,
        architecture="demo",
        class_names=["disc", "box"],
        category_ids=[3, 7],
        summary={},
    )
    return path


@pytest.fixture
def run(model_path, data_path, tmp_path):
    """Runs the command; returns its exit status and the report, None where none was written."""

    def run_command(*extra: str) -> tuple[int, dict | None]:
        common = f"--model-path {model_path} --data-path {data_path} --output {tmp_path}"
        small = "--device cpu --num-iterations 2 --batch-sizes 1,2 --max-images 2"
        status = benchmark_inference.main([*common.split(), *small.split(), *extra])
        report = tmp_path / "inference_benchmark.json"
        if not report.exists():
            return status, None
        return status, json.loads(report.read_text(encoding="utf-8"))

    return run_command


@pytest.fixture
def replace_variant(monkeypatch):
    """Gives a variant another way of building its predictor, for one test."""

    def replace(name: str, build) -> None:
        monkeypatch.setitem(VARIANTS, name, dataclasses.replace(VARIANTS[name], build=build))

    return replace
