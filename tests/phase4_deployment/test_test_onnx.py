"""The tool that tries out an exported file in every runtime there is."""

import json
import sys

import cv2
import numpy as np
import pytest

from common import paths
from phase4_deployment import test_onnx as tool
from phase4_deployment.checks import onnx_runtimes
from phase4_deployment.checks.onnx_runtimes import Run, Runtime
from tests.phase4_deployment.browsers import fake_browser, fake_runtime, needs_a_browser
from tests.random_detectors import random_detector, random_scene

ONE = ["--runtimes", "onnxruntime"]


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for seed in range(3):
        picture = random_scene(np.random.default_rng(seed), 60 + seed, 90)
        cv2.imwrite(str(folder / f"{seed}.png"), picture)
    return folder


def arguments(exported, pictures, *more: str) -> list[str]:
    paths = ["--onnx-path", str(exported.onnx_path), "--test-images", str(pictures)]
    return [*paths, "--output", str(pictures.parent / "metrics"), *more]


def report_of(pictures) -> dict:
    return json.loads((pictures.parent / "metrics" / "onnx_test.json").read_text())


def rows_of(pictures) -> dict[str, dict]:
    return {row["name"]: row for row in report_of(pictures)["runtimes"]}


def other_runtime(shift_px: float = 0.0) -> Runtime:
    """What ONNX Runtime finds, moved to the right."""

    def run(onnx_path, batches, tools):
        found = onnx_runtimes.RUNTIMES["onnxruntime"].run(onnx_path, batches, tools)
        moved = [one._replace(boxes_xyxy=one.boxes_xyxy + shift_px) for one in found.detections]
        return Run("OTHER", "other 1.0", moved, found.latency_ms)

    return Runtime(lambda tools: None, run)


def test_reports_provider_latency_and_parity(exported, pictures, capsys):
    model_path = str(exported.model_path)
    assert tool.main(arguments(exported, pictures, *ONE, "--model-path", model_path)) == 0
    out = capsys.readouterr().out
    assert "CPUExecutionProvider" in out
    report = report_of(pictures)
    assert report["images"] == 3
    assert report["reference"] == exported.model_path.name
    assert {name.rsplit("/", 1)[-1] for name in report["inputs"]} == {"model.onnx", "model.pth"}
    (row,) = report["runtimes"]
    assert (row["name"], row["status"]) == ("onnxruntime", "ok")
    assert row["provider"] == "CPUExecutionProvider"
    assert row["version"].startswith("onnxruntime 1.")
    assert row["detections"] > 0
    assert 0 < row["latency_ms"]["p50"] <= row["latency_ms"]["p99"]
    assert row["parity"]["matched"] == 1
    assert row["parity"]["images"] == 3 + 2  # and a pair in one batch


def test_alone_the_runtimes_are_compared_with_one_another(exported, pictures, monkeypatch):
    monkeypatch.setitem(onnx_runtimes.RUNTIMES, "openvino", other_runtime())
    assert tool.main(arguments(exported, pictures, "--runtimes", "openvino,onnxruntime")) == 0
    rows = rows_of(pictures)
    assert report_of(pictures)["reference"] == "onnxruntime"
    assert list(rows) == ["onnxruntime", "openvino"]
    assert (rows["onnxruntime"]["status"], rows["onnxruntime"]["parity"]) == ("reference", None)
    assert rows["openvino"]["status"] == "ok"
    assert rows["openvino"]["provider"] == "OTHER"
    assert rows["openvino"]["parity"]["max_box_error_px"] == 0
    assert rows["openvino"]["parity"]["detections"] > 0


@pytest.mark.parametrize("alone", [True, False])
def test_a_runtime_that_finds_something_else_is_named(
    exported, pictures, monkeypatch, capsys, alone
):
    monkeypatch.setitem(onnx_runtimes.RUNTIMES, "openvino", other_runtime(shift_px=0.2))
    more = [] if alone else ["--model-path", str(exported.model_path)]
    asked = ["--runtimes", "onnxruntime,openvino"]
    assert tool.main(arguments(exported, pictures, *asked, *more)) == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error
    reference = "onnxruntime" if alone else exported.model_path.name
    assert f"differs from {reference} in openvino" in error
    assert "in onnxruntime (" not in error
    rows = rows_of(pictures)
    assert rows["openvino"]["status"] == "differs"
    assert rows["onnxruntime"]["status"] == ("reference" if alone else "ok")


def test_a_runtime_that_cannot_run_the_file_is_named(exported, pictures, monkeypatch, capsys):
    def fail(onnx_path, batches, tools):
        raise RuntimeError("no operator\nRoiAlign")

    monkeypatch.setitem(onnx_runtimes.RUNTIMES, "openvino", Runtime(lambda tools: None, fail))
    assert tool.main(arguments(exported, pictures, "--runtimes", "onnxruntime,openvino")) == 2
    error = capsys.readouterr().err.strip()
    assert "fails in openvino (RuntimeError: no operator RoiAlign)" in error
    assert rows_of(pictures)["openvino"]["status"] == "failed"


@pytest.mark.fault("C-08")
def test_what_is_missing_is_told_and_no_failure_unless_asked_for(
    exported, pictures, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(onnx_runtimes.environment, "is_installed", lambda name: name != "openvino")
    assert tool.main(arguments(exported, pictures, "--device", "cpu")) == 0
    rows = rows_of(pictures)
    assert list(rows) == ["onnxruntime", "openvino", "web"]  # CUDA was not wanted
    assert {name: row["status"] for name, row in rows.items()} == {
        "onnxruntime": "reference",
        "openvino": "skipped",
        "web": "skipped",
    }
    assert "pip install -r requirements-extras.txt" in rows["openvino"]["reason"]
    assert "npm install" in rows["web"]["reason"]
    before = (pictures.parent / "metrics" / "onnx_test.json").read_bytes()
    out = capsys.readouterr().out
    assert rows["openvino"]["reason"] in out
    for name, remedy in (("openvino", "pip install"), ("web", "npm install")):
        assert tool.main(arguments(exported, pictures, "--runtimes", name)) == 2
        assert remedy in capsys.readouterr().err
    assert (pictures.parent / "metrics" / "onnx_test.json").read_bytes() == before


@pytest.mark.parametrize("name", ["onnx", "onnxruntime"])
@pytest.mark.fault("P4-18")
def test_what_it_cannot_do_without_is_told_with_the_command(
    exported, pictures, monkeypatch, capsys, name
):
    monkeypatch.setitem(sys.modules, name, None)
    assert tool.main(arguments(exported, pictures)) == 2
    error = capsys.readouterr().err
    assert error == f"error: {name}: is not installed – run: pip install -r requirements.txt\n"


def test_hidden_files_are_no_pictures(exported, pictures):
    """macOS lays ._0.png beside 0.png on disks of others."""
    (pictures / "._0.png").write_bytes(b"no picture")
    assert tool.main(arguments(exported, pictures, *ONE)) == 0
    assert report_of(pictures)["images"] == 3


@pytest.mark.parametrize("options", [["--device", "cuda"], ["--runtimes", "onnxruntime-cuda"]])
@pytest.mark.fault("P4-37")
def test_cuda_asked_for_and_absent_is_an_error(exported, pictures, monkeypatch, capsys, options):
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert tool.main(arguments(exported, pictures, *options)) == 2
    assert "CUDAExecutionProvider" in capsys.readouterr().err
    assert not (pictures.parent / "metrics").exists()


@pytest.mark.gpu
def test_cuda_finds_the_same(exported, pictures):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    options = ["--device", "cuda", "--model-path", str(exported.model_path)]
    assert tool.main(arguments(exported, pictures, *options)) == 0
    row = rows_of(pictures)["onnxruntime-cuda"]
    assert (row["provider"], row["status"]) == ("CUDAExecutionProvider", "ok")
    assert report_of(pictures)["environment"]["device"].startswith("cuda")


def test_the_options_of_the_browser_arrive(exported, pictures, tmp_path, capsys):
    """The stand-in finds something of its own, which is noticed."""
    runtime, browser = fake_runtime(tmp_path), fake_browser(tmp_path, "works")
    where = ["--web-runtime", str(runtime), "--browser", str(browser)]
    assert tool.main(arguments(exported, pictures, "--runtimes", "web", *where)) == 2
    assert "differs from onnxruntime in web" in capsys.readouterr().err
    row = rows_of(pictures)["web"]
    assert (row["provider"], row["detections"]) == ("wasm", 3 + 2)
    assert row["latency_ms"]["p50"] == 7
    browser = fake_browser(tmp_path, "fails")
    where = ["--web-runtime", str(runtime), "--browser", str(browser)]
    assert tool.main(arguments(exported, pictures, "--runtimes", "web", *where)) == 2
    assert "out of memory" in capsys.readouterr().err


@needs_a_browser
@pytest.mark.slow
def test_the_checkpoints_detections_are_found_in_the_browser(exported, pictures):
    options = ["--runtimes", "web", "--model-path", str(exported.model_path)]
    assert tool.main(arguments(exported, pictures, *options)) == 0
    row = rows_of(pictures)["web"]
    assert (row["provider"], row["status"]) == ("wasm", "ok")
    assert row["parity"]["detections"] > 0


def test_the_files_own_checkpoint_is_found(exported, pictures, tmp_path, monkeypatch):
    models = tmp_path / "models"
    models.mkdir()
    monkeypatch.setattr(paths, "MODELS", models)
    own = models / exported.model_path.name
    own.write_bytes(exported.model_path.read_bytes())
    own.with_suffix(".json").write_bytes(exported.model_path.with_suffix(".json").read_bytes())
    assert tool.main(arguments(exported, pictures, *ONE)) == 0
    assert report_of(pictures)["reference"] == own.name
    assert rows_of(pictures)["onnxruntime"]["status"] == "ok"


def test_another_checkpoint_is_noticed(exported, pictures, tmp_path, capsys):
    from common.models import save_model

    other = random_detector("demo", num_classes=4, min_size=96, max_size=192, bounded=False, seed=1)
    save_model(
        tmp_path / "other.pth",
        other,
        architecture="demo",
        class_names=exported.loaded.class_names,
        category_ids=exported.loaded.category_ids,
        summary={},
    )
    more = ["--model-path", str(tmp_path / "other.pth")]
    assert tool.main(arguments(exported, pictures, *ONE, *more)) == 2
    captured = capsys.readouterr()
    assert "is not the checkpoint" in captured.out
    assert captured.err.startswith("error: ")
    assert "differs from" in captured.err


@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "text"])
@pytest.mark.fault("P4-23", "P4-24", "P4-25", "P4-26")
def test_a_damaged_file_is_one_line_and_status_2(exported, pictures, tmp_path, capfd, damage):
    path = tmp_path / "damaged.onnx"
    content = exported.onnx_path.read_bytes()
    damaged = {"empty": b"", "truncated": content[:-1000], "text": b"no model"}
    if damage in damaged:
        path.write_bytes(damaged[damage])
    status = tool.main(["--onnx-path", str(path), "--test-images", str(pictures)])
    error = capfd.readouterr().err.strip()
    assert status == 2
    assert error.startswith("error: ")
    assert "\n" not in error


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--test-images", "missing"], "no such folder"),
        (["--device", "mps"], "not supported"),
        (["--model-path", "missing.pth"], "missing.pth: "),
        (["--runtimes", "opnvino"], "did you mean openvino?"),
        (["--runtimes", "onnxruntime-cuda", "--device", "cpu"], "contradicts --device cpu"),
    ],
)
def test_other_mistakes(exported, pictures, tmp_path, capsys, more, message):
    assert tool.main([*arguments(exported, pictures), *more]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error
    assert not (pictures.parent / "metrics").exists()


@pytest.mark.parametrize(
    ("runtimes", "device", "expected"),
    [
        (None, "auto", (["onnxruntime", "onnxruntime-cuda", "openvino", "web"], [])),
        (None, "cpu", (["onnxruntime", "openvino", "web"], [])),
        (None, "cuda", (list(tool.RUNTIMES), ["onnxruntime-cuda"])),
        (["web", "openvino"], "auto", (["openvino", "web"],) * 2),
        (["web"], "cuda", (["onnxruntime-cuda", "web"],) * 2),
        (["web", "web"], "cpu", (["web"],) * 2),
    ],
)
def test_which_runtimes_are_tried(runtimes, device, expected):
    assert tool.choose(runtimes, device) == expected


def test_every_runtime_of_the_option_exists():
    assert list(tool.RUNTIMES) == list(onnx_runtimes.RUNTIMES)
