"""What a format is built from, around the shared export."""

import pytest

from phase4_deployment import measuring
from phase4_deployment.formats.base import Ingredients
from phase4_deployment.quantization import calibration_records
from tests.phase4_deployment.test_quantization import load_in_model_order, write_data


@pytest.fixture
def ingredients(exported, tmp_path) -> Ingredients:
    """With the shared export in place of one of its own."""
    data = write_data(tmp_path / "data", {"train": 3, "val": 2})
    (tmp_path / "package").mkdir()
    made = Ingredients(
        exported.loaded,
        folder=tmp_path / "package",
        scratch=tmp_path,
        calibration=calibration_records(load_in_model_order(data, "train"), 3),
        val=measuring.ValImages(load_in_model_order(data, "val"), 2),
        max_map_drop=0.02,
        onnx_parity=exported.parity,
    )
    (made.folder / made.onnx_name).write_bytes(exported.onnx_path.read_bytes())
    return made
