"""The table of export formats; that of the guide is compared in test_readme_commands.py."""

import json

from benchmarks.formats_table import formats_table, main
from tests.training_runs import error_of


def test_what_was_not_measured_is_left_open(tmp_path):
    row = {"name": "a", "size_mib": None, "map": None, "status": "unavailable"}
    path = tmp_path / "export.json"
    path.write_text(json.dumps({"formats": [row]}))
    assert formats_table(path).endswith("| `a` | – | 1 | – | unavailable |")


def test_another_file_is_one_line(tmp_path, capsys):
    path = tmp_path / "profile.json"
    assert main([str(path)]) == 2
    assert f"{path}: no such file" in error_of(capsys)
    path.write_text("{}")
    assert main([str(path)]) == 2
    assert f"{path}: lists no formats" in error_of(capsys)
