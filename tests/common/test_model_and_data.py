"""A model and data of the same classes."""

from pathlib import Path
from typing import Any

import pytest

from common.cli import UserError
from common.coco import CocoSplit
from common.model_and_data import check_classes
from common.models import LoadedModel

NO_MODEL: Any = None


def test_the_order_of_the_classes_counts():
    loaded = LoadedModel(NO_MODEL, "demo", ("person", "car"), (1, 3), Path("model.pth"))
    check_classes(loaded, CocoSplit(Path("a.json"), (), ("person", "car"), (1, 3)), "other")
    says = r"^model\.pth: knows the classes person, car, the data has car, person – other$"
    with pytest.raises(UserError, match=says):
        check_classes(loaded, CocoSplit(Path("a.json"), (), ("car", "person"), (1, 3)), "other")
