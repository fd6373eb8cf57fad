"""Exports that are killed over an older file: it stays, or the newer one is there, never a mix."""

import os
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from common import artifacts
from common.onnx_detector import OnnxDetector
from tests.child_processes import CONTEXT
from tests.killing import TIMEOUT_S, Moments, duration_of, ended_by_itself
from tests.long_runs import times
from tests.random_detectors import random_scene

OLDER, NEWER = "20", "150"  # proposals that the files look at


def export(model_path: Path, target: Path, graph: Path | None, words: list[str]) -> None:
    """In a child process.

    Args:
        graph: written in the place of a new one, whose making takes most of the time.
    """
    from phase4_deployment import export_onnx

    if graph is not None:
        export_onnx.write_onnx = lambda made, path, metadata, opset: shutil.copyfile(graph, path)
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        sys.stdout = nowhere
        asked = ["--model-path", str(model_path), "--output", str(target), *words]
        raise SystemExit(export_onnx.main(asked))


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.fault("P4-17")
def test_killed_at_any_moment_the_file_is_the_one_its_sidecar_tells_of(exported, tmp_path):
    target, image = tmp_path / "model.onnx", random_scene(np.random.default_rng(2), 120, 160)
    (tmp_path / "older").mkdir()
    older = tmp_path / "older" / "model.onnx"

    def start(path: Path = target, *words: str, graph: Path | None = exported.onnx_path):
        asked = (exported.model_path, path, graph, list(words))
        process = CONTEXT.Process(target=export, args=asked)
        process.start()
        return process

    assert ended_by_itself(start(older, "--max-proposals", OLDER, graph=None), TIMEOUT_S)
    moments = Moments(5, duration_of(start))
    (expected,) = OnnxDetector(target, "cpu", threads=1)([image])
    killed = 0
    while killed < times(3, 50):
        for file in (target, artifacts.sidecar(target)):
            shutil.copy(older.with_name(file.name), file)
        killed += not ended_by_itself(start(), moments.draw())
        detector = OnnxDetector(target, "cpu", threads=1)  # compares it with its sidecar
        assert detector.metadata["max_proposals"] in (OLDER, NEWER)
        if artifacts.sidecar(target).exists():
            told = artifacts.read_json(artifacts.sidecar(target))["max_proposals"]
            assert detector.metadata["max_proposals"] == str(told)
    assert ended_by_itself(start(), TIMEOUT_S)
    (found,) = OnnxDetector(target, "cpu", threads=1)([image])
    np.testing.assert_array_equal(found.boxes_xyxy, expected.boxes_xyxy)
    np.testing.assert_array_equal(found.scores, expected.scores)


def test_what_killed_exports_left_goes_in_time(exported, tmp_path, monkeypatch):
    from phase4_deployment import export_onnx

    def copy(graph, path, metadata, opset):
        shutil.copyfile(exported.onnx_path, path)

    monkeypatch.setattr(export_onnx, "write_onnx", copy)
    left, recent = tmp_path / ".tmp-model-abcd1234.onnx", tmp_path / ".tmp-model-efgh5678.onnx"
    for file in (left, recent):
        file.touch()
    two_hours_ago = time.time() - 7200
    os.utime(left, (two_hours_ago, two_hours_ago))
    export_onnx.export_onnx(exported.loaded, tmp_path / "model.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == [recent.name, "model.onnx"]
