"""pruning.py from outside: the report, the checkpoint and where it goes on, refusals."""

import json

import numpy as np
import pytest
import torch

from common import coco
from common.cli import UserError
from common.models import load_model
from phase4_deployment import export_onnx, pruning
from phase4_deployment.pruned.pruned_models import KINDS, PruningPlan, parameter_count
from tests.phase4_deployment.test_quantization import load_in_model_order, write_data
from tests.random_detectors import random_scene

CPU = torch.device("cpu")
SCRIPT = "phase4_deployment/pruning.py"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("pruning") / "data", {"train": 3, "val": 3})


@pytest.fixture
def run(exported, data, tmp_path, monkeypatch):
    """prune() on the small detector; returns what pruning.json holds."""
    monkeypatch.setattr(coco, "load_split", load_in_model_order)

    def call(method="both", amounts=(0.3, 0.6), output=None, max_map_drop=1.0):
        parts = ("backbone", "rpn", "box_head")
        plan = PruningPlan(KINDS[method], amounts, parts, "global", 8, 0, None)
        pruning.prune(
            exported.model_path,
            data,
            plan,
            output=output,
            max_map_drop=max_map_drop,
            max_images=3,
            num_iterations=7,
            time_budget_s=1,
            device_name="cpu",
            seed=0,
            metrics=tmp_path / "metrics",
        )
        return read_report(tmp_path)

    return call


def read_report(folder) -> dict:
    return json.loads((folder / "metrics" / "pruning.json").read_text(encoding="utf-8"))


def test_the_report(run, tmp_path):
    report = run()
    assert report["schema"].startswith("pruning/")
    assert len(report["inputs"]) == 3
    assert report["rounds"] == 7
    assert report["noise"]["ci95"][0] <= report["noise"]["ratio"] <= report["noise"]["ci95"][1]
    rows = {row["name"]: row for row in report["models"]}
    assert next(iter(rows)) == report["baseline"] == "unpruned"
    for name, row in rows.items():
        assert {"p50", "p90", "p99"} <= set(row["latency_ms"])
        assert {"matched", "max_box_error_px", "max_score_error", "unmatched"} == set(row["parity"])
        assert row["size_zip_mib"] < row["size_mib"]
        assert (row["speedup"] is None) == (name == "unpruned")
        if row["speedup"]:
            assert row["speedup"]["ci95"][0] <= row["speedup"]["ratio"]
            assert row["verdict"] in ("faster", "slower", "within noise")
    assert rows["unpruned"]["parity"]["matched"] == 1
    assert rows["zero_weights_0.6"]["zero_share"] == pytest.approx(0.6, abs=1e-3)
    assert len(report["conclusion"]) == 3
    assert len(report["not_removed"]) == 3
    assert (tmp_path / "metrics" / "pruning.png").stat().st_size > 10_000


def test_zeros_are_computed_with_and_removed_channels_are_not(run):
    rows = {row["name"]: row for row in run("structured", (0.6,))["models"]}
    unpruned, zeroed, removed = rows.values()
    assert zeroed["gflops"] == pytest.approx(unpruned["gflops"], rel=0.1)  # regions may differ
    assert zeroed["size_mib"] == pytest.approx(unpruned["size_mib"], rel=0.001)
    assert zeroed["size_zip_mib"] < 0.8 * unpruned["size_zip_mib"]
    assert removed["gflops"] < 0.7 * unpruned["gflops"]
    assert removed["size_mib"] < 0.6 * unpruned["size_mib"]
    assert removed["map"] == pytest.approx(zeroed["map"], abs=1e-3)
    assert removed["difference_to_zeroed"] < 1e-4
    assert removed["removed_share"] > 0.4
    assert zeroed["removed_share"] == 0


@pytest.mark.slow
def test_the_narrow_checkpoint_is_loaded_and_exported(run, exported, tmp_path):
    report = run("both", (0.3, 0.6), output=tmp_path / "narrow.pth")
    loaded = load_model(tmp_path / "narrow.pth", CPU)
    row = report["models"][-1]
    assert row["name"] == "removed_channels_0.6"
    assert parameter_count(loaded.model) == row["parameters"]
    assert loaded.class_names == exported.loaded.class_names
    sidecar = json.loads((tmp_path / "narrow.json").read_text(encoding="utf-8"))
    assert sidecar["pruned"]["name"] == row["name"]
    images = [random_scene(np.random.default_rng(1), 120, 160)]
    parity = export_onnx.export_onnx(loaded, tmp_path / "narrow.onnx", images=images)
    assert parity["holds"]
    assert parity["detections"]
    onnx_bytes = (tmp_path / "narrow.onnx").stat().st_size
    assert onnx_bytes < 0.7 * exported.onnx_path.stat().st_size


def test_the_sparse_checkpoint_of_unstructured_pruning(run, tmp_path):
    run("unstructured", (0.5,), output=tmp_path / "sparse.pth")
    sidecar = json.loads((tmp_path / "sparse.json").read_text(encoding="utf-8"))
    assert sidecar["pruned"]["name"] == "zero_weights_0.5"


def test_over_the_budget_the_report_is_written_and_no_checkpoint(run, tmp_path, monkeypatch):
    from phase4_deployment.pruned import pruning_measures

    monkeypatch.setattr(pruning_measures, "verdict", lambda *_: "rejected: mAP drop 0.5")
    (tmp_path / "narrow.pth").write_bytes(b"older")
    with pytest.raises(UserError, match="not written: every amount loses more than 0"):
        run("structured", (0.6,), output=tmp_path / "narrow.pth", max_map_drop=0.0)
    assert (tmp_path / "narrow.pth").read_bytes() == b"older"
    assert read_report(tmp_path)["models"][-1]["status"].startswith("rejected")


def test_the_model_itself_is_never_replaced(run, exported):
    before = exported.model_path.read_bytes()
    with pytest.raises(UserError, match="is the model that is pruned"):
        run(output=exported.model_path)
    assert exported.model_path.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--amounts", "0.5,1"], "1 is not below 1"),
        (["--amounts", "0,0.5"], "0 prunes nothing"),
        (["--amounts", "half"], "'half' is not a number"),
        (["--amounts", ","], "the list is empty"),
        (["--parts", "rpn,neck"], "'neck' is none of backbone, rpn, box_head"),
        (["--method", "magic"], "--method"),
        (["--num-iterations", "3"], "3 is not 7 or more"),
        (["--output", "model.onnx"], "the name must end in .pth"),
        (["--model-path", "a.pth", "--output", "a.pth"], "is the model that is pruned"),
        (["--model-path", "missing.pth", "--data-path", "x"], "missing.pth: no such file"),
    ],
)
def test_user_errors_exit_2_in_one_line(run_script, outputs_dir, arguments, message):
    done = run_script(SCRIPT, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not outputs_dir.exists()


def test_lists_are_sorted_and_without_repeats():
    args = pruning.build_parser().parse_args(
        ["--amounts", "0.9, 0.3,0.30", "--parts", "box_head,backbone"]
    )
    assert args.amounts == (0.3, 0.9)
    assert args.parts == ("backbone", "box_head")


def test_the_defaults_are_parsed_too():
    args = pruning.build_parser().parse_args([])
    assert args.amounts == (0.3, 0.5, 0.7, 0.9)
    assert args.parts == ("backbone", "rpn", "box_head")
    assert args.output is None
