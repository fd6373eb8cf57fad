"""The deployment folder: complete, true to its checksums, verified, replaced only as a whole."""

import contextlib
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from common import artifacts, coco, paths
from common.cli import UserError
from common.evaluation import compare_detections
from common.inference_graph import InferenceGraph, graph_predictor
from common.models import Detections, load_model
from phase4_deployment import cold_start, export_all, export_onnx, measuring
from phase4_deployment.formats import catalogue, pytorch_export
from phase4_deployment.formats.base import Format
from phase4_deployment.packing import package_files, package_trial
from phase4_deployment.packing.shipped_modules import shipped_files
from tests.phase4_deployment.conftest import CATEGORY_IDS, CLASS_NAMES
from tests.phase4_deployment.test_quantization import load_in_model_order, write_data
from tests.random_detectors import random_scene

FILES = {
    *("model.pth", "model.json", "model.onnx", "model_int8.onnx", "model.pt2"),
    *("model_scripted.pt", "serve.py", "requirements-serve.txt"),
    *("detect.py", "labels.json", "README.md", "requirements.txt", "package_info.json"),
    *("golden/image.png", "golden/detections.json"),
    *(file.relative_to(paths.ROOT).as_posix() for file in shipped_files()),
    *(
        (folder / "__init__.py").as_posix()
        for file in shipped_files()
        for folder in file.relative_to(paths.ROOT).parents
        if folder.name
    ),
}
CPU = torch.device("cpu")
NAMES = [name for name in catalogue.DEFAULT if not name.startswith("openvino")]


def files_in(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"), {"train": 3, "val": 4})


@pytest.fixture
def build(exported, data, tmp_path, monkeypatch):
    """export_all() with the two slow steps replaced: the ONNX export and torch.export."""

    def export(loaded, path, *, images=()):
        shutil.copyfile(exported.onnx_path, path)
        return exported.parity

    def export_program(graph, path):
        path.write_bytes(b"program")
        return graph

    def load_stub(formats, images):
        """Leaves model.pt2, which is none here, out."""
        original([item for item in formats if item.name != "pytorch_export"], images)

    original = cold_start.measure_cold_starts
    monkeypatch.setattr(export_onnx, "export_onnx", export)
    monkeypatch.setattr(coco, "load_split", load_in_model_order)
    monkeypatch.setattr(pytorch_export, "export_program", export_program)
    monkeypatch.setattr(cold_start, "measure_cold_starts", load_stub)

    def call(max_map_drop: float = 1.0, max_proposals: int | None = None) -> Path:
        export_all.export_all(
            exported.model_path,
            data,
            output_dir=tmp_path / "deployment",
            names=NAMES,
            batch_sizes=[1, 2],
            calibration_images=2,
            max_map_drop=max_map_drop,
            max_images=4,
            num_iterations=2,
            time_budget_s=60.0,
            latency_budget_ms=100.0,
            seed=0,
            metrics=tmp_path / "metrics",
            max_proposals=max_proposals,
        )
        return tmp_path / "deployment"

    return call


@pytest.fixture
def quick(monkeypatch):
    """No child processes: cold starts and the run of detect.py are tested elsewhere."""
    monkeypatch.setattr(cold_start, "measure_cold_starts", lambda formats, images: None)
    monkeypatch.setattr(export_all, "check_package", lambda *_: {})


@pytest.mark.fault("P4-48")
@pytest.mark.slow
def test_package_is_complete_and_true_to_its_checksums(build, exported, tmp_path):
    package = build()
    assert files_in(package) == FILES
    info = artifacts.read_json(package / "package_info.json")
    assert set(info["files"]) == FILES - {"package_info.json"}
    for name, entry in info["files"].items():
        assert entry["sha256"] == artifacts.sha256(package / name)
        assert entry["bytes"] == (package / name).stat().st_size
    assert info["class_names"] == list(CLASS_NAMES)
    assert info["source_checkpoint"]["sha256"] == artifacts.sha256(exported.model_path)
    for name in ("model.onnx", "model_int8.onnx"):
        sizes = info["batch_sizes"][name]
        assert sizes["throughput"] in (1, 2)
        assert sizes["latency"] in (1, 2, None)
    labels = artifacts.read_json(package / "labels.json")["labels"]
    assert [(row["label"], row["category_id"], row["name"]) for row in labels] == [
        (i + 1, CATEGORY_IDS[i], CLASS_NAMES[i]) for i in range(3)
    ]
    assert load_model(package / "model.pth", CPU).class_names == CLASS_NAMES

    report = artifacts.read_json(tmp_path / "metrics" / "export.json")
    rows = {row["name"]: row for row in report["formats"]}
    assert rows["torchscript"]["status"] == "ok"
    assert rows["torchscript"]["trace"].startswith("unsupported: Only tensors, lists, tuples")
    assert rows["onnx_fp32"]["status"] == "ok"
    assert rows["onnx_fp32"]["cold_start"]["load_s"] > 0
    assert rows["onnx_fp32"]["peak_memory_mib"] < rows["pytorch_fp32"]["peak_memory_mib"]
    assert [batch["batch_size"] for batch in rows["onnx_int8"]["batches"]] == [1, 2]
    assert set(report["package_check"]) == {"model.onnx", "model_int8.onnx"}
    assert report["tried_in"] == info["tried_in"] == {"clean": True, "reason": None}
    assert info["golden_boxes"] > 0
    for checked in report["package_check"].values():
        assert checked["boxes"] > 0
        assert checked["parity"]["matched"] >= 0.99
        assert checked["tracks"] > 0
    with zipfile.ZipFile(tmp_path / "deployment.zip") as archive:
        assert {name.removeprefix("deployment/") for name in archive.namelist()} == FILES
        assert (
            archive.read("deployment/package_info.json")
            == (package / "package_info.json").read_bytes()
        )
    quantization = artifacts.read_json(tmp_path / "metrics" / "quantization.json")
    assert "pytorch_int8_dynamic" in [row["name"] for row in quantization["formats"]]
    assert (tmp_path / "metrics" / "export_comparison.png").stat().st_size > 10_000

    readme = (package / "README.md").read_text(encoding="utf-8")
    p50 = rows["onnx_int8"]["latency_ms"]["p50"]
    assert f"| model_int8.onnx | {rows['onnx_int8']['size_mib']:.2f} | {p50:.1f} |" in readme
    assert "Fußgänger" in readme


@pytest.mark.usefixtures("quick")
@pytest.mark.slow
def test_older_package_is_untouched_when_the_check_fails(build, tmp_path, monkeypatch):
    package = build()
    before = {name: artifacts.sha256(tmp_path / name) for name in files_in(tmp_path)}
    assert "deployment.zip" in before

    def fail(*_):
        raise RuntimeError("detect.py finds something else")

    monkeypatch.setattr(export_all, "check_package", fail)
    with pytest.raises(RuntimeError, match="something else"):
        build()
    assert {name: artifacts.sha256(tmp_path / name) for name in files_in(tmp_path)} == before
    assert files_in(package)
    assert not list(tmp_path.glob(".tmp-*"))


@pytest.mark.usefixtures("quick")
@pytest.mark.slow
def test_new_package_replaces_an_old_one_and_keeps_other_files(build, tmp_path):
    package = tmp_path / "deployment"
    package.mkdir()
    (package / ".gitkeep").touch()
    (package / "model.onnx").write_bytes(b"older")
    build()
    (package / "detections").mkdir()
    (package / "detections" / "detections.json").touch()
    build()
    assert files_in(package) == FILES | {".gitkeep", "detections/detections.json"}


@pytest.mark.usefixtures("quick")
def test_rejected_int8_is_left_out_and_told(build, tmp_path, monkeypatch):
    original = measuring.verdict

    def verdict(item, row, baseline_map):
        if item.name == "onnx_int8":
            return "rejected: mAP drop 0.5000 over the budget of 0.02"
        return original(item, row, baseline_map)

    monkeypatch.setattr(measuring, "verdict", verdict)
    with pytest.raises(
        UserError, match=r"left out of the package: onnx_int8 \(rejected: .*larger --max-map-drop"
    ):
        build()
    package = tmp_path / "deployment"
    assert files_in(package) == FILES - {"model_int8.onnx"}
    info = artifacts.read_json(package / "package_info.json")
    assert "model_int8.onnx" not in info["files"]
    assert "model_int8" not in (package / "README.md").read_text(encoding="utf-8")


@pytest.mark.usefixtures("quick")
@pytest.mark.fault("P4-19")
def test_a_format_that_fails_is_a_row_and_the_rest_is_in_place(build, tmp_path, monkeypatch):
    def fail(graph, path):
        path.write_bytes(b"half")
        raise RuntimeError("the exporter gave up\nat line 7")

    monkeypatch.setattr(pytorch_export, "export_program", fail)
    what = (
        r"left out of the package: pytorch_export \(failed: the exporter gave up\) – leave it out"
    )
    with pytest.raises(UserError, match=what):
        build()
    assert files_in(tmp_path / "deployment") == FILES - {"model.pt2"}
    report = artifacts.read_json(tmp_path / "metrics" / "export.json")
    rows = {row["name"]: row for row in report["formats"]}
    assert rows["pytorch_export"]["status"] == "failed: the exporter gave up"
    assert rows["onnx_int8"]["status"] == "ok"


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("asked", "exported_look_at"), [(None, 150), (30, 30)], ids=["all", "fewer"]
)
def test_the_package_tells_at_how_many_proposals_it_looks(build, tmp_path, asked, exported_look_at):
    package = build(max_proposals=asked)
    expected = {"model": 150, "exported": exported_look_at}
    assert artifacts.read_json(package / "package_info.json")["max_proposals"] == expected
    report = artifacts.read_json(tmp_path / "metrics" / "export.json")
    assert report["max_proposals"] == expected
    readme = " ".join((package / "README.md").read_text(encoding="utf-8").split())
    told = "looks at the 30 best proposals of an image instead of the 150 that model.pth and"
    assert (told in readme) == (asked is not None)


def test_a_packed_file_must_find_what_it_found_when_it_was_measured(monkeypatch):
    """Not what PyTorch finds, which was asked over all val images: in a single one the tie of two
    regions, which rounding decides, would be too large a share."""

    def predictor(score: float):
        found = Detections(np.zeros((1, 4), np.float32), np.float32([score]), np.int64([1]))
        return lambda images: [found for _ in images]

    tried = {}

    class Trial:
        def run(self, *_):
            pass

        def picture_parity(self, name, image, expected, category_ids):
            tried[name] = float(expected.scores[0])

        def tracks(self, name, image):
            return 1

    monkeypatch.setattr(package_trial, "unpacked", lambda *_: contextlib.nullcontext(Trial()))
    formats = [
        Format("pytorch_fp32", Path("model.pth"), "pytorch", predictor(0.25)),
        Format("onnx_fp32", Path("a.onnx"), "onnxruntime", predictor(0.5)),
        Format("onnx_int8", Path("b.onnx"), "onnxruntime", predictor(0.75), None, 0.02),
    ]
    rows = [{"name": item.name, "status": "ok"} for item in formats]
    val = SimpleNamespace(images=[np.zeros((8, 8, 3), np.uint8)])
    loaded = SimpleNamespace(category_ids=(1,))
    export_all.check_package(Path("a.zip"), Path("python"), formats, rows, val, loaded)
    assert tried == {"a.onnx": 0.5, "b.onnx": 0.75}


@pytest.mark.usefixtures("quick")
def test_a_default_model_that_is_rejected_is_told_by_its_own_status(build, tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "verdict", lambda item, *_: "rejected: a box differs by 3.00 px")
    with pytest.raises(UserError, match=r"rejected: a box differs .* no package without it"):
        build()
    assert not (tmp_path / "deployment").exists()


@pytest.mark.usefixtures("quick")
@pytest.mark.fault("P4-19")
def test_without_what_the_package_runs_there_is_none(build, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("the exporter gave up")

    monkeypatch.setattr(export_onnx, "export_onnx", fail)
    with pytest.raises(RuntimeError, match="gave up"):
        build()
    assert not (tmp_path / "deployment").exists()


def test_a_folder_of_somebody_else_is_not_replaced(build, tmp_path):
    (tmp_path / "deployment").mkdir()
    (tmp_path / "deployment" / "thesis.tex").write_text("years", encoding="utf-8")
    with pytest.raises(UserError, match=r"holds thesis\.tex and no package"):
        build()
    assert (tmp_path / "deployment" / "thesis.tex").read_text(encoding="utf-8") == "years"


def test_a_damaged_list_of_files_is_told_at_once_and_costs_nobody_a_file(tmp_path):
    package = tmp_path / "deployment"
    package.mkdir()
    (package / "model.onnx").touch()
    (package / "results.csv").write_text("mine", encoding="utf-8")

    def build(damage_while_building: bool):
        with package_files.package_folder(package):
            if damage_while_building:
                (package / "package_info.json").write_text("{", encoding="utf-8")

    for while_building in (True, False):
        with pytest.raises(UserError, match=r"package_info\.json: not valid JSON"):
            build(while_building)
        assert (package / "results.csv").read_text(encoding="utf-8") == "mine"
        assert not list(tmp_path.glob(".tmp-*"))


def test_a_file_that_cannot_be_loaded_is_rejected_in_a_line(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"no model")
    item = Format("onnx_fp32", tmp_path / "model.onnx", "onnxruntime", lambda images: [])
    cold_start.measure_cold_starts([item], [np.zeros((8, 8, 3), np.uint8)])
    assert item.status.startswith("rejected: cannot be loaded (")
    assert "\n" not in item.status
    assert "model.onnx" in item.status


@pytest.mark.usefixtures("quick")
def test_without_int8_the_report_on_quantisation_of_another_run_stays(build, tmp_path, monkeypatch):
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics" / "quantization.json").write_text("{}", encoding="utf-8")
    monkeypatch.setattr(sys.modules[__name__], "NAMES", ["torchscript"])
    build()
    assert (tmp_path / "metrics" / "quantization.json").read_text(encoding="utf-8") == "{}"


@pytest.mark.slow
def test_export_program_reads_back_and_agrees(exported, tmp_path):
    """Also on an image whose feature maps are one row high, which the export's guards refuse."""
    rng = np.random.default_rng(4)
    images = [random_scene(rng, height, width) for height, width in ((96, 128), (20, 200))]
    model = exported.loaded.model
    pytorch_export.export_program(InferenceGraph(model), tmp_path / "model.pt2")
    np.savez(tmp_path / "images.npz", *images)
    subprocess.run(
        [
            *(sys.executable, cold_start.__file__, "pytorch_export"),
            *(tmp_path / "model.pt2", tmp_path / "images.npz", "1", tmp_path / "measured.json"),
        ],
        check=True,
    )
    found = json.loads((tmp_path / "measured.json").read_text(encoding="utf-8"))["detections"]
    expected = [graph_predictor(InferenceGraph(model), CPU)([image])[0] for image in images]
    actual = [
        Detections(np.float32(boxes).reshape(-1, 4), np.float32(scores), np.int64(labels))
        for boxes, scores, labels in found
    ]
    parity = compare_detections(expected, actual)
    assert parity["matched"] == 1.0
    assert len(expected[1].scores) > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch-sizes", "1,0"], "not 1 or more"),
        (["--output-dirs", "x"], "did you mean --output-dir"),
        (["--model-path", "missing.pth", "--data-path", "x"], "missing.pth: no such file"),
    ],
)
def test_user_errors_exit_2_in_one_line(run_script, arguments, message):
    done = run_script("phase4_deployment/export_all.py", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
