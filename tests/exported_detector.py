"""One small detector and its ONNX file, for tests of several folders: an export takes a while."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from common.models import load_model, save_model
from phase4_deployment import export_onnx
from tests.made_once import made_once
from tests.random_detectors import random_detector, random_scene

CLASS_NAMES = ("car", "Fußgänger", "traffic light")
CATEGORY_IDS = (3, 1, 10)


def exported_once(factory: pytest.TempPathFactory) -> SimpleNamespace:
    """`model_path`, its `loaded` model, `onnx_path`, and the `parity` of the export."""
    folder = made_once(factory, "exported", _export_to)
    return SimpleNamespace(
        model_path=folder / "model.pth",
        loaded=load_model(folder / "model.pth", torch.device("cpu")),
        onnx_path=folder / "model.onnx",
        parity=json.loads(_parity_file(folder).read_text(encoding="utf-8")),
    )


def _export_to(folder: Path) -> None:
    model = random_detector("demo", num_classes=4, min_size=96, max_size=192, bounded=False)
    save_model(
        folder / "model.pth",
        model,
        architecture="demo",
        class_names=CLASS_NAMES,
        category_ids=CATEGORY_IDS,
        summary={},
    )
    loaded = load_model(folder / "model.pth", torch.device("cpu"))
    images = [random_scene(np.random.default_rng(1), 120, 160)]
    parity = export_onnx.export_onnx(loaded, folder / "model.onnx", images=images)
    _parity_file(folder).write_text(json.dumps(parity), encoding="utf-8")


def _parity_file(folder: Path) -> Path:
    """Beside the folder, which holds what an export writes and nothing else."""
    return folder.with_name("exported_parity.json")
