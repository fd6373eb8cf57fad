"""The exported detector and the package that the tests of this folder share."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from common.onnx_detector import OnnxDetector
from phase4_deployment.packing import clean_environment, package_files
from tests.exported_detector import CATEGORY_IDS as CATEGORY_IDS
from tests.exported_detector import CLASS_NAMES as CLASS_NAMES
from tests.exported_detector import exported_once
from tests.made_once import made_once
from tests.phase4_deployment.packages import build_package, unpack
from tests.random_detectors import random_scene


@pytest.fixture(scope="session")
def exported(tmp_path_factory) -> SimpleNamespace:
    """See `exported_once`."""
    return exported_once(tmp_path_factory)


@pytest.fixture
def blind_in_the_dark(monkeypatch) -> None:
    """The ONNX detector finds nothing in a black image; its random weights would."""
    original = OnnxDetector.__call__

    def detect(self, images):
        found = original(self, images)
        return [
            one
            if image.any()
            else one._replace(
                boxes_xyxy=one.boxes_xyxy[:0],
                scores=one.scores[:0],
                labels=one.labels[:0],
                names=one.names[:0],
            )
            for image, one in zip(images, found, strict=True)
        ]

    monkeypatch.setattr(OnnxDetector, "__call__", detect)


@pytest.fixture(scope="session")
def archive(exported, tmp_path_factory) -> Path:
    """The .zip of a package."""

    def build(folder: Path) -> None:
        images = [random_scene(np.random.default_rng(seed), 120, 160) for seed in range(3)]
        build_package(folder / "new", exported, images)
        package_files.write_archive(folder / "new", "detector")

    return made_once(tmp_path_factory, "building", build) / package_files.ARCHIVE


@pytest.fixture(scope="session")
def package(archive, tmp_path_factory) -> Path:
    """It unpacked somewhere else; not to be changed."""
    return unpack(archive, tmp_path_factory.mktemp("shipped package"))


@pytest.fixture(scope="session")
def clean_python(tmp_path_factory) -> Path:
    """A Python that has what the package's requirements.txt asks for and nothing else."""
    names = clean_environment.requirement_names(package_files.REQUIREMENTS)
    return clean_environment.make(tmp_path_factory.mktemp("environment"), names)
