"""The README's figures are those of the committed results, and its commands exist."""

import re

import pytest

from benchmarks.ladder_table import default_reports, ladder_tables
from benchmarks.readme_table import RESULTS, results_table
from common.paths import ROOT

GUIDES = [ROOT / "README.md", *sorted(ROOT.glob("phase*/README_*.md"))]


def test_the_results_table_is_what_the_script_prints():
    assert results_table(RESULTS) in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_ladders_are_what_the_script_prints():
    reports = default_reports()
    page = (ROOT / "phase2_optimization" / "README_PHASE2.md").read_text(encoding="utf-8")
    assert ladder_tables(reports) in page
    front = sorted(path for path in reports if path.match("cpu_amx/trained_*.json"))  # as a shell
    assert front
    assert ladder_tables(front) in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.name)
def test_scripts_and_options_in_the_guide_exist(guide):
    text = re.sub(r"\\\n\s*", "", guide.read_text(encoding="utf-8"))
    commands = re.findall(r"^python (\S+\.py)([^#\n]*)", text, re.MULTILINE)
    for script, arguments in commands:
        source = ROOT / script
        if not source.is_file():  # the package's own detect.py is named without its folder
            source = ROOT / "phase4_deployment" / "package" / script
        assert source.is_file(), script
        known = source.read_text(encoding="utf-8")
        known += "".join(path.read_text(encoding="utf-8") for path in source.parent.glob("*.py"))
        known += (ROOT / "common" / "cli.py").read_text(encoding="utf-8")
        for option in re.findall(r"--[a-z][a-z-]*", arguments):
            assert f'"{option}"' in known, f"{script} {option}"


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.name)
def test_links_and_pictures_of_the_guide_exist(guide):
    for target in re.findall(r"\]\(([^)#]+)\)", guide.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (guide.parent / target).exists(), target
