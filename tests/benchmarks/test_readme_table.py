"""The README's table of other machines; the README's own is compared in test_readme_commands.py."""

import json
import shutil

from benchmarks.readme_table import RESULTS, results_table


def test_a_gpu_and_the_other_build_of_onnx_runtime_are_told_as_they_are(tmp_path):
    results = shutil.copytree(RESULTS, tmp_path / "results")
    training = json.loads((results / "training.json").read_text(encoding="utf-8"))
    packages = training["environment"]["packages"]
    packages["onnxruntime"] = packages.pop("onnxruntime-gpu")
    training["environment"] |= {"device": "cuda:0", "device_name": "NVIDIA H200"}
    (results / "training.json").write_text(json.dumps(training), encoding="utf-8")
    head = results_table(results).splitlines()[0]
    assert "NVIDIA H200, 2 threads, torch 2.15.0" in head
    assert "onnxruntime 1.31.1;" in head
