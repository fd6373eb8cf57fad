"""Damaged ONNX files in child processes: their parser and their runtime are native code."""

from pathlib import Path

import numpy as np
import pytest

from common import artifacts
from common.cli import UserError
from common.onnx_detector import OnnxDetector
from tests.child_processes import run_ranks
from tests.common.test_onnx_detector import IMAGE, detector_graph
from tests.damage import assert_one_line_about, damaged
from tests.long_runs import count, times

CHUNK = 250  # files a child process loads; one that it hangs at is told after a minute


def run_damaged(path: Path, whole: bytes, seeds: range) -> int:
    """How many files were run."""
    ran = 0
    for seed in seeds:
        path.with_suffix(".seed").write_text(str(seed))
        path.write_bytes(damaged(whole, seed))
        try:
            detector = OnnxDetector(path, "cpu", threads=1)
            (found,) = detector([IMAGE])
        except UserError as error:
            assert_one_line_about(path, error)
            continue
        ran += 1
        count_found = len(found.scores)
        assert found.boxes_xyxy.shape == (count_found, 4)
        assert found.labels.shape == (count_found,)
        assert len(found.names) == count_found
        assert set(found.names) <= set(detector.class_names)
    return ran


@pytest.mark.long
@pytest.mark.fault("P4-26")
def test_a_damaged_file_is_refused_or_answers_in_the_form(tmp_path, capfd):
    """Without its sidecar nobody can tell what a weight has been."""
    path, whole, ran = tmp_path / "model.onnx", detector_graph().SerializeToString(), 0
    for start in range(0, times(CHUNK, 3000), CHUNK):
        count("damaged files", CHUNK)
        (result,) = run_ranks(run_damaged, 1, path, whole, range(start, start + CHUNK))
        assert isinstance(result, int), (result, path.with_suffix(".seed").read_text())
        ran += result
    assert 0 < ran < times(CHUNK, 3000) // 2
    assert capfd.readouterr() == ("", "")  # what is wrong is told by the error alone


@pytest.mark.long
@pytest.mark.fault("P4-27")
def test_beside_its_sidecar_every_damage_is_noticed(tmp_path):
    path, whole = tmp_path / "model.onnx", detector_graph().SerializeToString()
    path.write_bytes(whole)
    artifacts.write_json(artifacts.sidecar(path), {"sha256": artifacts.sha256(path)})
    OnnxDetector(path, "cpu", threads=1)
    for seed in range(times(50, 1000)):
        count("damaged files")
        path.write_bytes(damaged(whole, seed))
        with pytest.raises(UserError, match=r"differs from the sha256 in model\.onnx\.json"):
            OnnxDetector(path, "cpu", threads=1)


@pytest.mark.parametrize("value", ["short", "deep"])
def test_outputs_of_other_shapes_are_refused(tmp_path, value):
    """What a graph declares and what it answers are two things."""
    found = {
        "boxes": np.zeros((1, 2, 4 if value == "deep" else 3), np.float32),
        "scores": np.zeros((1, 2, 1) if value == "deep" else (1, 2), np.float32),
        "labels": np.zeros((1, 2), np.int64),
        "num": np.zeros(1, np.int64),
    }
    (tmp_path / "model.onnx").write_bytes(detector_graph(found).SerializeToString())
    detector = OnnxDetector(tmp_path / "model.onnx", "cpu", threads=1)
    with pytest.raises(UserError, match=r"model\.onnx: answers in other shapes: \(1, 2, "):
        detector([IMAGE])


def test_a_file_for_another_size_says_so_in_one_line(tmp_path):
    model = detector_graph(input_shape=(1, 64, 64, 3))
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    detector = OnnxDetector(tmp_path / "model.onnx", "cpu", threads=1)
    with pytest.raises(UserError, match=r"model\.onnx: cannot be run \(Got invalid dimensions"):
        detector([IMAGE])
