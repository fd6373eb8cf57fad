"""The exported detector that the tests of this folder share."""

from types import SimpleNamespace

import pytest

from tests.exported_detector import CATEGORY_IDS as CATEGORY_IDS
from tests.exported_detector import CLASS_NAMES as CLASS_NAMES
from tests.exported_detector import export_to


@pytest.fixture(scope="session")
def exported(tmp_path_factory) -> SimpleNamespace:
    """See `export_to`."""
    return export_to(tmp_path_factory.mktemp("exported"))
