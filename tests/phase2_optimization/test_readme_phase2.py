"""README_PHASE2.md: each command runs, and so do the snippets."""

import json
import re
import time

import pytest
import torch

from common.paths import ROOT
from tests import readme_pages
from tests.readme_pages import Command, commands_of, committed, no_rule

TEXT = (ROOT / "phase2_optimization" / "README_PHASE2.md").read_text(encoding="utf-8")
COMMANDS = commands_of(TEXT)
LEFT_OUT = {"pip install": "needs the package index"}
SMALL = {
    "gpu_profiler.py": "--steps 1 --batch-size 1",
    "mixed_precision.py": "--steps 1 --batch-size 1 --seeds 1 --max-images 1",
    "benchmark_inference.py": "--variants inference_graph --num-iterations 1 --max-images 1",
}


def small(words: list[str]) -> Command:
    """The command, shrunk; ValueError for one that is not known here."""
    if words[:2] in (["python", "-m"], ["python", "benchmarks/ladder_table.py"]):
        return Command(committed(words))
    name = words[1].removeprefix("phase2_optimization/")
    if words[0] != "python" or name not in SMALL:
        raise no_rule(words)
    more = ["--device", "cpu", *SMALL[name].split()]
    if name == "benchmark_inference.py" and "auto" not in words:
        more += ["--batch-sizes", "1,2"]
    return Command([*words, *more])


def test_each_command_is_run_or_left_out_for_a_reason():
    run, left_out = readme_pages.split(COMMANDS, LEFT_OUT)
    assert len([small(words) for words in run]) > 9
    assert all(left_out.values())
    with pytest.raises(ValueError, match=r"no rule for: python phase2_optimization/new\.py"):
        small(["python", "phase2_optimization/new.py"])


@pytest.mark.slow
def test_the_commands_end_well(tmp_path, tmp_path_factory):
    folder = readme_pages.prepare(tmp_path, tmp_path_factory)
    for name in ("best_model.pth", "trained_model.pth"):
        folder.model(name)
    (tmp_path / "path" / "to").mkdir(parents=True)
    (tmp_path / "path" / "to" / "coco").symlink_to(folder.data)
    run, _ = readme_pages.split(COMMANDS, LEFT_OUT)
    results = readme_pages.run(folder, [small(words) for words in run])
    assert len(results) == len(run)
    metrics = tmp_path / "outputs" / "metrics"
    reports = ("profile", "amp_comparison", "inference_benchmark")
    assert all(json.loads((metrics / f"{name}.json").read_text("utf-8")) for name in reports)
    assert "| `inference_graph` |" in results[-1].out  # the table of one's own run


def test_the_snippets_run(monkeypatch):
    """On a GPU as they stand; elsewhere without one to wait for."""
    if not torch.cuda.is_available():
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    snippets = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    assert len(snippets) == 2
    names = {"torch": torch, "time": time, "model": torch.nn.Identity(), "images": torch.ones(1)}
    for snippet in snippets:
        exec(compile(snippet, "README_PHASE2.md", "exec"), names)
    assert names["elapsed_s"] > 0
    (record,) = names["profiler"].metrics["forward"]
    assert min(record.values()) >= 0
