"""Every known way of a run of phase 2 to fail, by the number of its case: what a run leaves.

What is refused before there is a result is in test_faults_phase2.py.
"""

import contextlib
import gzip
import io
import json
import resource
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from common import artifacts, gpu_state, report
from phase2_optimization import amp_comparison, profiling
from phase2_optimization.variants import BASELINE
from tests.phase2_runs import (
    SCRIPTS,
    STAND_INS,
    arms_of,
    contents,
    read,
    rows_of,
    run,
    shorten,
    write_older,
)

each_script = pytest.mark.parametrize("script", SCRIPTS)
THEIRS = {"training.json": b"phase 1", "tracking_eval.json": b"phase 3", "notes.txt": b"a person"}
MORE = {  # options of the runs that do work: also what a CPU cannot do
    "benchmark_inference": ("--variants", "channels_last,bf16,fp16"),
    "mixed_precision": (),
    "gpu_profiler": ("--amp", "bf16"),
}


@dataclass
class Done:
    """A run that has ended well: its folder, its report and what it printed."""

    folder: Path
    report: dict[str, Any]
    printed: str
    profile: profiling.Profile | None = None


@pytest.fixture(scope="module")
def done(model_path, data_path, tmp_path_factory):
    """One short run of each script with the device left to it, one iteration, without seaborn, and
    into a folder that holds a report of another time and files of others."""
    runs: dict[str, Done] = {}
    profiles: list[profiling.Profile] = []
    measure = profiling.measure

    def kept(*args: Any, **settings: Any) -> profiling.Profile:
        profiles.append(measure(*args, **settings))
        return profiles[-1]

    device = "cpu" if torch.cuda.is_available() else "auto"
    for script, described in SCRIPTS.items():
        folder = tmp_path_factory.mktemp(script)
        for name, content in THEIRS.items():
            (folder / name).write_bytes(content)
        (folder / f"{described.report}.json").write_text('{"schema": "of/99", "arms": "none"}')
        with (
            pytest.MonkeyPatch.context() as patch,
            contextlib.redirect_stdout(io.StringIO()) as out,
        ):
            patch.setitem(sys.modules, "seaborn", None)
            shorten(patch)
            patch.setattr(profiling, "measure", kept)
            more = ("--device", device, *MORE[script])
            assert run(script, model_path, data_path, folder, *more) == 0
        runs[script] = Done(folder, read(folder, script), out.getvalue())
    runs["gpu_profiler"].profile = profiles[0]
    return runs


# --- a run that works -----------------------------------------------------------------------------


def values_of(content: Any, word: str) -> Iterator[Any]:
    """The values whose keys hold a word, at any depth."""
    pairs = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in pairs:
        if word in str(key):
            yield value
        if isinstance(value, dict | list):
            yield from values_of(value, word)


@each_script
def test_p2_02_a_cpu_is_called_a_cpu(done, script):
    report, printed = done[script].report, done[script].printed
    assert report["environment"]["device"] == "cpu"
    assert report["environment"]["device_name"] == report["environment"]["cpu"]
    assert "cuda" not in report["environment"]
    assert ", cpu (" in printed.splitlines()[0]
    for value in values_of({**report, "environment": {}}, "gpu"):
        assert value in (None, {"before": None, "after": None})


@each_script
def test_p2_15_one_iteration_claims_nothing(done, script):
    report = done[script].report
    if script == "benchmark_inference":
        row = rows_of(report, "channels_last")[1]
        assert (row["iterations"], row["verdict"]) == (1, "too few rounds to tell")
        assert row["speedup"]["ratio"] > 0
        assert row["speedup"]["ci95"] is row["step"]["ci95"] is None  # no spread from one
        assert row["step"]["verdict"] == "too few rounds to tell"
        assert report["noise"] == {}
        printed = " ".join(done[script].printed.split())
        assert printed.count("[–] too few rounds") == 2  # steps of channels_last and bf16
        assert report["fastest_variant"] is None
    elif script == "mixed_precision":
        assert report["timed_steps"] == 1
        assert report["speedup"]["verdict"] == "too few rounds to tell"
        assert "one timed step cannot tell" in report["reading"]
    else:
        assert report["steps"] == 1
        assert len(set(report["free_step_ms"].values())) == 1
        for part in (report, report["inference"]):
            assert part["stock"]["speedup"]["ci95"] is None
            assert part["stock"]["speedup"]["verdict"] == "too few rounds to tell"
        assert done[script].printed.count("fewer than 7 steps have no interval") == 2


@each_script
def test_p2_18_half_precision_on_a_cpu_runs(done, script):
    report = done[script].report
    if script == "benchmark_inference":
        assert rows_of(report, "bf16")[1]["latency_ms"]["p50"] > 0
    elif script == "mixed_precision":
        assert arms_of(report)["amp_bf16"]["status"] == "ok"
    else:
        assert report["amp"] == "bf16"
        assert report["flops"]["dtype"] == "bfloat16"


def test_p2_19_float16_on_a_cpu_is_unavailable_and_says_why(done):
    row = rows_of(done["benchmark_inference"].report, "fp16")[1]
    assert row["status"] == "unavailable: made for cuda, not cpu"
    assert row["latency_ms"] is None
    arm = arms_of(done["mixed_precision"].report)["amp_fp16"]
    assert arm["status"].startswith("unavailable: float16 with loss scaling needs a CUDA GPU")
    assert arm["step_ms"] is None


def test_p2_21_channels_last_on_a_cpu_finds_the_same(done):
    row = rows_of(done["benchmark_inference"].report, "channels_last")[1]
    assert row["status"] == "ok"
    assert row["parity"]["matched"] >= 0.99


@each_script
def test_p2_27_without_nvml_there_is_no_state(done, script, monkeypatch):
    assert done[script].report["gpu_state"] == {"before": None, "after": None}
    assert not any("GPU" in warning for warning in done[script].report["warnings"])
    monkeypatch.setitem(sys.modules, "cuda.bindings.nvml", None)
    assert gpu_state.gpu_state(torch.device("cuda", 0)) is None


@each_script
@pytest.mark.fault("C-08")
def test_p2_33_pictures_need_no_seaborn(done, script):
    with Image.open(done[script].folder / SCRIPTS[script].picture) as picture:
        picture.load()
        assert picture.format == "PNG"
        assert picture.width > 1000


@each_script
def test_p2_34_files_of_others_stay(done, script):
    left = contents(done[script].folder)
    assert {name: left[name] for name in THEIRS} == THEIRS
    own = {f"{SCRIPTS[script].report}.json", SCRIPTS[script].picture}
    own |= {"profile_trace.json.gz"} if script == "gpu_profiler" else set()
    assert set(left) == own | set(THEIRS)  # and nothing temporary


@each_script
def test_p2_35_a_report_of_another_schema_is_replaced(done, script):
    assert done[script].report["schema"] == f"{SCRIPTS[script].report}/1"


def test_p2_35_reports_of_another_schema_make_a_page():
    odd = {"schema": "of/99", "results": 7, "arms": {"fp32": 1}, "stages": "none", "warnings": 1}
    content = report.build(report.Inputs({script.report: odd for script in SCRIPTS.values()}))
    assert "<html" in report.render_html(content)
    assert report.render_markdown(content).startswith("# ")


@each_script
@pytest.mark.fault("C-14")
def test_p2_29_a_number_that_is_none_is_never_written(done, script, tmp_path):
    """`read` refuses NaN and Infinity; here the writer does, and keeps what was there."""
    file = tmp_path / f"{SCRIPTS[script].report}.json"
    file.write_bytes(b"older")
    for value in (float("nan"), np.float32("inf")):
        with pytest.raises(ValueError, match="not JSON compliant"):
            artifacts.write_json(file, {**done[script].report, "value": value})
    assert contents(tmp_path) == {file.name: b"older"}


# --- disks and sizes ------------------------------------------------------------------------------


@contextlib.contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """What a full disk does to a writer, at a byte of ours."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def again(model_path, data_path, tmp_path, monkeypatch, done):
    """Runs a script with stand-ins for the precisions and the profile of the earlier run."""
    profile = done["gpu_profiler"].profile
    monkeypatch.setattr(profiling, "measure", lambda *_, **__: profile)
    monkeypatch.setattr(amp_comparison, "precisions", lambda device: dict(STAND_INS))
    shorten(monkeypatch)
    return lambda script, *more: run(script, model_path, data_path, tmp_path, *more)


@each_script
@pytest.mark.fault("C-11")
def test_p2_31_a_disk_that_fills_under_the_picture_spares_the_report(
    again, monkeypatch, capsys, tmp_path, script
):
    described, older = SCRIPTS[script], write_older(tmp_path)
    draw = described.plot.draw

    def on_a_full_disk(*args: Any) -> None:
        with no_file_above(2000):
            draw(*args)

    monkeypatch.setattr(described.plot, "draw", on_a_full_disk)
    assert again(script) == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path / described.picture}: cannot be written (File too large) – "
        "free some space there\n"
    )
    left = contents(tmp_path)
    assert left.keys() == older.keys()
    changed = {file for file in left if left[file] != older[file]}
    if script == "gpu_profiler":  # its report tells of its other files: all are the older ones
        assert not changed
    else:
        assert changed == {f"{described.report}.json"}
        assert read(tmp_path, script)["complete"] is True


def test_p2_39_a_trace_above_the_limit_keeps_its_longest_events(again, tmp_path):
    limit_mib = 0.02
    assert again("gpu_profiler", "--max-trace-mib", limit_mib) == 0
    report, file = read(tmp_path, "gpu_profiler"), tmp_path / "profile_trace.json.gz"
    assert report["trace"]["events_dropped"] > 0
    assert file.stat().st_size <= limit_mib * 2**20
    with gzip.open(file, "rt", encoding="utf-8") as written:
        events = json.load(written)["traceEvents"]
    assert len(events) == report["trace"]["events"] > 0
    assert {"training", "inference"} <= {event["name"] for event in events}


def test_p2_40_hostile_class_names_stay_whole(model_path, data_path, tmp_path, again):
    """In the JSON; pictures of phase 2 show no class, and the page has tests of its own."""
    hostile = ["<script>alert(1)</script> $\\frac{", "\N{DOG FACE}" + "検出器" * 100]
    copy = Path(shutil.copytree(data_path, tmp_path / "data"))
    for file in (copy / "annotations").iterdir():
        split = json.loads(file.read_text(encoding="utf-8"))
        for category, name in zip(split["categories"], hostile, strict=True):
            category["name"] = name
        file.write_text(json.dumps(split), encoding="utf-8")
    model = tmp_path / "hostile.pth"
    content = artifacts.load_checkpoint(model_path)
    artifacts.save_checkpoint(model, {**content, "class_names": hostile}, {})
    assert again("benchmark_inference", "--model-path", model, "--data-path", copy) == 0
    found = read(tmp_path, "benchmark_inference")
    assert list(found["variants"][BASELINE]["accuracy"]["per_class"]) == hostile
    page = report.render_html(report.build(report.Inputs({"inference_benchmark": found})))
    assert "<script" not in page
