"""The table of inference ladders."""

import json

import pytest

from benchmarks import ladder_table
from common.cli import UserError


@pytest.mark.parametrize("content", [{"schema": "training/1"}, {"baseline": "a", "results": []}])
def test_a_report_of_another_kind_is_refused(tmp_path, content):
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"profile\.json: no inference benchmark"):
        ladder_table.ladder_tables([path])
