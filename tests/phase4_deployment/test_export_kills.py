"""Exports that are killed over an older file: it stays, or the newer one is there, never a mix."""

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from common import artifacts
from common.onnx_detector import OnnxDetector
from tests.child_processes import CONTEXT
from tests.killing import TIMEOUT_S, Moments, duration_of, ended_by_itself
from tests.long_runs import times
from tests.random_detectors import random_scene


def export(model_path: Path, target: Path, words: list[str]) -> None:
    """In a child process."""
    from phase4_deployment import export_onnx

    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        sys.stdout = nowhere
        asked = ["--model-path", str(model_path), "--output", str(target), *words]
        raise SystemExit(export_onnx.main(asked))


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.fault("P4-17")
def test_killed_at_any_moment_the_file_is_the_one_its_sidecar_tells_of(exported, tmp_path):
    target, image = tmp_path / "model.onnx", random_scene(np.random.default_rng(2), 120, 160)

    def start(*words: str):
        process = CONTEXT.Process(target=export, args=(exported.model_path, target, list(words)))
        process.start()
        return process

    assert ended_by_itself(start("--max-proposals", "20"), TIMEOUT_S)
    older = [shutil.copy(file, tmp_path / f"older{file.suffix}") for file in tmp_path.iterdir()]
    assert len(older) == 2
    moments = Moments(5, duration_of(start))
    (expected,) = OnnxDetector(target, "cpu", threads=1)([image])
    killed = 0
    while killed < times(2, 50):
        for suffix, file in ((".onnx", target), (".json", artifacts.sidecar(target))):
            with artifacts.atomic_path(file) as temporary:
                shutil.copy(tmp_path / f"older{suffix}", temporary)
        killed += not ended_by_itself(start(), moments.draw())
        detector = OnnxDetector(target, "cpu", threads=1)  # compares it with its sidecar
        assert detector.metadata["max_proposals"] in ("20", "150")
        if artifacts.sidecar(target).exists():
            told = artifacts.read_json(artifacts.sidecar(target))["max_proposals"]
            assert detector.metadata["max_proposals"] == str(told)
    assert ended_by_itself(start(), TIMEOUT_S)
    (found,) = OnnxDetector(target, "cpu", threads=1)([image])
    np.testing.assert_array_equal(found.boxes_xyxy, expected.boxes_xyxy)
    np.testing.assert_array_equal(found.scores, expected.scores)
