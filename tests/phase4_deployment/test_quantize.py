"""quantize.py from outside: formats by suffix, the report, refusals."""

import json
import shutil

import pytest
import torch

from common import artifacts, coco
from common.cli import UserError
from phase4_deployment import export_onnx, measuring, quantization, quantize
from phase4_deployment.formats import int8_search
from tests.phase4_deployment.test_quantization import load_in_model_order, write_data


@pytest.fixture
def data(tmp_path):
    return write_data(tmp_path / "data", {"train": 3, "val": 3})


@pytest.fixture
def without_export(exported, monkeypatch):
    """The export is taken from the fixture, and classes are in the order of its model."""

    def export(loaded, path, *, images=()):
        shutil.copyfile(exported.onnx_path, path)
        return exported.parity

    monkeypatch.setattr(export_onnx, "export_onnx", export)
    monkeypatch.setattr(coco, "load_split", load_in_model_order)


@pytest.fixture
def run(exported, data, tmp_path, without_export):
    """quantize() on the small detector, or a copy of it."""

    def call(
        name: str,
        max_map_drop: float = 1.0,
        num_iterations: int = 2,
        model_path=exported.model_path,
    ):
        quantize.quantize(
            model_path,
            data,
            outputs=[tmp_path / name],
            calibration_images=2,
            max_map_drop=max_map_drop,
            max_images=3,
            num_iterations=num_iterations,
            device_name="auto",
            seed=0,
            report_path=tmp_path / "quantization.json",
        )
        return json.loads((tmp_path / "quantization.json").read_text(encoding="utf-8"))

    return call


def test_pth_is_dynamic_and_can_be_loaded(run, tmp_path):
    report = run("quantized_model.pth")
    names = [row["name"] for row in report["formats"]]
    assert names == ["pytorch_fp32", "pytorch_int8_dynamic"]
    assert quantization.count_quantized(
        quantization.load_dynamic(tmp_path / "quantized_model.pth")
    )["Linear"] == {"int8": 4, "float": 0}
    assert (tmp_path / "quantized_model.json").is_file()


@pytest.mark.parametrize(("rounds", "told"), [(6, 1), (7, 0)])
def test_too_few_rounds_for_an_interval_are_told_once(run, caplog, rounds, told):
    report = run("quantized_model.pth", num_iterations=rounds)
    text = f"Speed-ups carry no interval, shown as [–]: {rounds} timed rounds, 7 needed"
    assert caplog.messages.count(text) == told
    assert (report["formats"][1]["speedup"]["ci95"] is None) == bool(told)


def test_onnx_is_static_and_compared_with_both_fp32_models(run, tmp_path):
    report = run("small.onnx")
    assert report["schema"].startswith("quantization/")
    assert report["calibration"]["split"] == "train"
    rows = {row["name"]: row for row in report["formats"]}
    row = rows["onnx_int8"]
    assert row["file"] == "small.onnx"
    assert row["status"] == "ok"
    assert row["size_mib"] == pytest.approx((tmp_path / "small.onnx").stat().st_size / 2**20)
    assert {"p50", "p90", "p99"} <= set(row["latency_ms"])
    assert {"matched", "max_box_error_px", "max_score_error", "unmatched"} == set(row["parity"])
    for key in ("speedup", "speedup_same_runtime"):
        assert row[key]["ratio"] > 0
        assert row[key]["ci95"] is None, "two rounds have none"
    assert rows["onnx_fp32"]["parity"]["matched"] >= 0.99


@pytest.mark.fault("P4-43")
def test_over_the_budget_the_older_file_stays_and_the_new_one_is_called_rejected(
    run, tmp_path, monkeypatch
):
    """INT8 that costs 0.5 mAP whatever stays in float is refused."""
    static = int8_search.StaticResult(0.5, (), "widest", False, 1, 2, ())

    def fail_budget(quantiser, target, *_):
        shutil.copyfile(quantiser.source, target)
        return static

    monkeypatch.setattr(int8_search, "quantize_within_budget", fail_budget)
    (tmp_path / "small.onnx").write_bytes(b"older")
    with pytest.raises(UserError, match=r"rejected: mAP drop 0\.5.*; kept as small.onnx.rejected"):
        run("small.onnx", max_map_drop=0.02)
    assert (tmp_path / "small.onnx.rejected").stat().st_size > 1000
    assert (tmp_path / "small.onnx").read_bytes() == b"older"
    report = json.loads((tmp_path / "quantization.json").read_text(encoding="utf-8"))
    assert report["formats"][-1]["status"].startswith("rejected")


@pytest.mark.parametrize("suffix", [".pth", ".onnx"])
def test_p4_41_no_image_to_calibrate_on_is_told(data, run, tmp_path, suffix):
    file = data / "annotations" / "instances_train.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**content, "images": [], "annotations": []}), encoding="utf-8")
    with pytest.raises(UserError, match=r"instances_train\.json: the data set is empty"):
        run(f"small{suffix}")
    assert not [path for path in tmp_path.iterdir() if path.name != "data"]


def test_p4_41_one_image_suffices(data, run, tmp_path):
    file = data / "annotations" / "instances_train.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    one = {key: content[key][:1] for key in ("images", "annotations")}
    file.write_text(json.dumps({**content, **one}), encoding="utf-8")
    report = run("small.onnx")
    assert report["calibration"]["images"] == 1
    assert report["formats"][-1]["status"] == "ok"
    assert (tmp_path / "small.onnx").is_file()


def test_p4_41_a_damaged_calibration_image_is_named_and_nothing_written(data, run, tmp_path):
    (data / "images" / "train" / "train_2.png").write_bytes(b"no picture")
    (tmp_path / "small.onnx").write_bytes(b"older")
    with pytest.raises(UserError, match=r"train_2\.png: "):
        run("small.onnx")
    assert (tmp_path / "small.onnx").read_bytes() == b"older"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "small.onnx"]


def test_p4_42_without_an_engine_dynamic_int8_is_refused(run, tmp_path, monkeypatch):
    monkeypatch.setattr(type(torch.backends.quantized), "supported_engines", ["none"])
    with pytest.raises(UserError, match=r"dynamic INT8: .* without an engine .* \.onnx instead"):
        run("quantized_model.pth")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize("name", ["model.pth", "link.pth"])
def test_the_model_that_is_quantised_is_not_replaced(exported, run, tmp_path, name):
    model = tmp_path / "model.pth"
    shutil.copyfile(exported.model_path, model)
    (tmp_path / "link.pth").symlink_to(model)
    with pytest.raises(UserError, match=rf"{name}: is the model that is quantised"):
        run(name, model_path=model)
    assert model.read_bytes() == exported.model_path.read_bytes()
    assert not (tmp_path / "quantization.json").exists()


def test_side_by_side_nothing_is_kept_and_what_is_rejected_is_a_row(
    exported, data, tmp_path, without_export, monkeypatch, capsys
):
    original = measuring.verdict

    def verdict(item, row, baseline_map):
        is_int8 = item.max_map_drop is not None
        return "rejected: too much" if is_int8 else original(item, row, baseline_map)

    monkeypatch.setattr(measuring, "verdict", verdict)
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(exported.model_path, "dynamic.pth")  # a name that a result has, too
    words = ["--model-path", "dynamic.pth", "--data-path", data, "--output", tmp_path / "m"]
    words += ["--calibration-images", 2, "--max-map-drop", 1, "--num-iterations", 1]
    assert quantization.main([str(word) for word in words]) == 0
    assert capsys.readouterr().err == ""
    assert [path.name for path in (tmp_path / "m").iterdir()] == ["quantization.json"]
    report = json.loads((tmp_path / "m" / "quantization.json").read_text(encoding="utf-8"))
    assert {row["name"]: row["status"] for row in report["formats"]} == {
        "pytorch_fp32": "ok",
        "pytorch_int8_dynamic": "rejected: too much",
        "onnx_fp32": "ok",
        "onnx_int8": "rejected: too much",
    }


def test_unknown_suffix_is_refused_before_anything_is_loaded(run):
    with pytest.raises(UserError, match=r"unknown suffix '\.pt'"):
        run("model.pt")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-map-drop", "2"], "not between 0 and 1"),
        (["--calibration-images", "0"], "not 1 or more"),
        (["--model-path", "missing.pth", "--data-path", "x"], "missing.pth: no such file"),
    ],
)
def test_user_errors_exit_2_in_one_line(run_script, arguments, message):
    done = run_script("phase4_deployment/quantize.py", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_sidecar_of_an_older_file_does_not_stay_beside_a_newer_one(tmp_path):
    """It would tell that the newer one is damaged."""
    made, target = tmp_path / "made" / "model.onnx", tmp_path / "model.onnx"
    made.parent.mkdir()
    made.write_bytes(b"newer")
    target.write_bytes(b"older")
    artifacts.write_json(artifacts.sidecar(target), {"sha256": artifacts.sha256(target)})
    quantize._deliver([target], made.parent, {"model.onnx": "ok"})
    assert target.read_bytes() == b"newer"
    assert not artifacts.sidecar(target).exists()
