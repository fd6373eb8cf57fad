"""The tool that tries out an exported file."""

import json

import cv2
import numpy as np
import pytest

from phase4_deployment import test_onnx as tool
from tests.random_detectors import random_detector, random_scene


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


def test_reports_provider_latency_and_parity(exported, pictures, capsys):
    model_path = str(exported.model_path)
    assert tool.main(arguments(exported, pictures, "--model-path", model_path)) == 0
    out = capsys.readouterr().out
    assert "Provider: CPUExecutionProvider" in out or "Provider: CUDAExecutionProvider" in out
    report = json.loads((pictures.parent / "metrics" / "onnx_test.json").read_text())
    assert report["images"] == 3
    assert report["detections"] > 0
    assert 0 < report["latency_ms"]["p50"] <= report["latency_ms"]["p99"]
    assert report["parity"]["matched"] == 1


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
    assert tool.main(arguments(exported, pictures, *more)) == 2
    captured = capsys.readouterr()
    assert "is not the checkpoint" in captured.out
    assert captured.err.startswith("error: ")
    assert "differs from" in captured.err


@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "text"])
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
    [(["--test-images", "missing"], "no such folder"), (["--device", "mps"], "not supported")],
)
def test_other_mistakes(exported, pictures, tmp_path, capsys, more, message):
    assert tool.main([*arguments(exported, pictures), *more]) == 2
    assert message in capsys.readouterr().err
    assert not (pictures.parent / "metrics").exists()
