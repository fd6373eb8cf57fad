"""Faults of an export: checkpoints that are none, images at the borders, packages that are missing.

Each number is that of a case of tests/faults/catalogue.py.
"""

import json
import os
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from common import artifacts
from common.inference_graph import InferenceGraph, graph_predictor
from common.models import ARCHITECTURES, build_model
from common.onnx_detector import OnnxDetector
from phase4_deployment import export_onnx
from phase4_deployment.checks import parity
from tests.random_detectors import random_scene

CPU = torch.device("cpu")


# --- checkpoints ------------------------------------------------------------------------------


class Command:
    """Unpickling it would create the file `target`."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return (os.system, (f"touch '{self.target}'",))


def changed(**changes: Any) -> Callable[[Path], None]:
    """A checkpoint that is whole, and says something else of itself."""

    def damage(path: Path) -> None:
        content = {**artifacts.load_checkpoint(path), **changes}
        artifacts.save_checkpoint(path, content, {})

    return damage


def flip(path: Path) -> None:
    whole = bytearray(path.read_bytes())
    artifacts.write_json(artifacts.sidecar(path), {"sha256": artifacts.sha256(path)})
    whole[len(whole) // 2] ^= 1
    path.write_bytes(whole)


def script(path: Path) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))


FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "P4-01-missing": (Path.unlink, "no such file"),
    "P4-02-truncated": (lambda p: p.write_bytes(p.read_bytes()[:-500]), "not a checkpoint"),
    "P4-03-empty": (lambda p: p.write_bytes(b""), "not a checkpoint"),
    "P4-04-text": (lambda p: p.write_text("hello"), "not a checkpoint"),
    "P4-05-malicious": (
        lambda p: torch.save({"model_state_dict": Command(p.with_name("ran"))}, p),
        "holds code that is never executed",
    ),
    "P4-06-foreign": (lambda p: torch.save({"epoch": 3, "model": {}}, p), "of this project"),
    "P4-07-classes": (changed(num_classes=9), "does not fit its model"),
    "P4-08-architecture": (
        changed(architecture="fasterrcnn_mobilenet_v3_large_320_fpn"),
        "does not fit its model",
    ),
    "P4-09-flipped": (flip, "differs from the sha256 in its .json"),
    "torchscript": (script, "not a checkpoint"),
    "safetensors": (lambda p: p.write_bytes(struct.pack("<Q", 2**60) + b"{}"), "not a checkpoint"),
}


@pytest.mark.parametrize(("damage", "said"), FAULTS.values(), ids=FAULTS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_checkpoint_that_is_none_is_one_line_and_writes_nothing(
    exported, tmp_path, monkeypatch, capsys, damage, said
):
    monkeypatch.chdir(tmp_path)
    checkpoint, output = tmp_path / "model.pth", tmp_path / "new.onnx"
    checkpoint.write_bytes(exported.model_path.read_bytes())
    damage(checkpoint)
    output.write_text("older", encoding="utf-8")
    before = sorted(path.name for path in tmp_path.iterdir())
    arguments = ["--model-path", str(checkpoint), "--output", str(output)]
    assert export_onnx.main(arguments) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    assert "model.pth: " in line
    assert said in line
    assert " – " in line
    assert output.read_text(encoding="utf-8") == "older"
    assert sorted(path.name for path in tmp_path.iterdir()) == before


# --- images -----------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 2, 3, 17])
def test_p4_12_every_number_of_images_agrees(exported, batch):
    rng = np.random.default_rng(batch)
    images = [random_scene(rng, 64, 96) for _ in range(batch)]
    detector = OnnxDetector(exported.onnx_path, "cpu")
    measured = parity.compare_with_torch(exported.loaded.model, detector, [images])
    assert measured["matched"] == 1
    assert measured["images"] == batch
    assert measured["detections"] > 0


@pytest.mark.parametrize("size", [(1, 1), (1, 2000), (2160, 3840)])
def test_p4_11_the_smallest_and_large_images_agree(exported, size):
    images = [random_scene(np.random.default_rng(3), *size)]
    detector = OnnxDetector(exported.onnx_path, "cpu")
    measured = parity.compare_with_torch(exported.loaded.model, detector, [images])
    assert measured["detections"] > 0
    assert measured["matched"] == 1


def at_threshold(exported, threshold: float, file: Path) -> tuple[OnnxDetector, Any]:
    """The file and the graph it was made of, with another threshold of the score."""
    model = onnx.load(exported.onnx_path)
    values = {i.name: i for i in model.graph.initializer}
    node = [node for node in model.graph.node if node.op_type == "NonMaxSuppression"][-1]
    changed = onnx.numpy_helper.from_array(np.float32([threshold]), node.input[4])
    values[node.input[4]].CopyFrom(changed)
    onnx.save(model, file)
    graph = InferenceGraph(exported.loaded.model)
    graph.score_threshold = threshold
    return OnnxDetector(file, "cpu"), graph_predictor(graph, CPU)


def test_p4_14_p4_15_one_detection_and_as_many_as_there_can_be(exported, tmp_path):
    image = random_scene(np.random.default_rng(2), 120, 160)
    (found,) = graph_predictor(InferenceGraph(exported.loaded.model), CPU)([image])
    best, second = np.sort(found.scores)[:-3:-1]
    most = exported.loaded.model.roi_heads.detections_per_img
    for threshold, count in (((best + second) / 2, 1), (1e-6, most)):
        detector, graph = at_threshold(exported, float(threshold), tmp_path / "changed.onnx")
        (actual,), (expected,) = detector([image]), graph([image])
        assert len(actual.scores) == len(expected.scores) == count
        np.testing.assert_allclose(actual.scores, expected.scores, atol=1e-4)


def test_p4_16_an_image_of_nan_cannot_be_given(exported):
    detector = OnnxDetector(exported.onnx_path, "cpu")
    with pytest.raises(ValueError, match=r"must be uint8 \(height, width, 3\), not float32"):
        detector([np.full((20, 30, 3), np.nan, np.float32)])
    with pytest.raises(Exception, match="uint8"):
        detector.session.run(None, {"images": np.full((1, 20, 30, 3), np.nan, np.float32)})


# --- the machine ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["onnx", "onnxscript", "onnxruntime"])
def test_p4_18_what_is_not_installed_is_told_with_the_command(
    exported, tmp_path, monkeypatch, capsys, name
):
    """Formats that need an optional package are rows, see test_formats.py; without these there is
    no package to build."""
    monkeypatch.setitem(sys.modules, name, None)
    output = tmp_path / "model.onnx"
    arguments = ["--model-path", str(exported.model_path), "--output", str(output)]
    assert export_onnx.main(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert error == f"error: {name}: is not installed – run: pip install -r requirements.txt"
    assert not list(tmp_path.iterdir())


def test_p4_20_no_file_comes_near_the_2_gb_of_one_protobuf():
    """So weights never lie beside it, where they could be lost."""
    for architecture in ARCHITECTURES:
        with torch.device("meta"):
            model = build_model(architecture, 1000)
        assert sum(weight.nbytes for weight in model.state_dict().values()) < 2**30, architecture


def test_p4_48_every_row_of_the_readme_is_one_of_the_list(package):
    """That the list is what was measured, test_export_all.py checks."""
    info = json.loads((package / "package_info.json").read_text(encoding="utf-8"))
    rows = {row["file"]: row for row in info["formats"] if row["status"] == "ok"}
    readme = (package / "README.md").read_text(encoding="utf-8")
    table = readme[readme.index("| file | MiB |") :].split("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    assert [line[0] for line in cells] == list(rows)
    for name, size, p50, p99, speedup, score, *_ in cells:
        row = rows[name]
        assert size == f"{row['size_mib']:.2f}"
        assert (p50, p99) == tuple(f"{row['latency_ms'][key]:.1f}" for key in ("p50", "p99"))
        assert speedup.split(" ")[0] == (
            f"{row['speedup']['ratio']:.2f}" if row["speedup"] else "1"
        )
        assert score == f"{row['map']:.4f}"
