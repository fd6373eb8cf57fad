"""Runs the commands of a page one after the other, in one process: torch is imported once.

    python -m tests.readme_child < task.json

What it is told and what it answers: see `tests.readme_pages.run`.
"""

import contextlib
import hashlib
import importlib
import io
import itertools
import json
import os
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    task = json.load(sys.stdin)
    if task["exported"]:
        reuse_export(*map(Path, task["exported"]))
        try_one_package()
    results = []
    for one in task["commands"]:
        results.append(run(one["words"]))
        if results[-1]["status"] not in one["statuses"]:
            break
    Path(task["answer"]).write_text(json.dumps(results), encoding="utf-8")


def run(words: list[str]) -> dict[str, Any]:
    """Exit status and texts of `export NAME=VALUE` or `python`, with FILE, -m MODULE or -c CODE."""
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        try:
            status = export(words[1]) if words[0] == "export" else call(*words[1:])
        except SystemExit as ended:  # of argparse
            status = int(ended.code or 0)
    return {"status": status, "out": out.getvalue(), "error": error.getvalue()}


def export(assignment: str) -> int:
    """Sets a variable for what follows, OUTPUTS_DIR too, which was read when this began."""
    from common import paths

    name, value = assignment.split("=")
    os.environ[name] = value
    importlib.reload(paths)
    return 0


def call(first: str, *rest: str) -> int:
    if first == "-c":
        exec(compile(rest[0], "-c", "exec"), {"__name__": "__main__"})
        return 0
    name, *arguments = rest if first == "-m" else (first, *rest)
    sys.argv = [name, *arguments]
    return importlib.import_module(name.removesuffix(".py").replace("/", ".")).main(arguments)


def reuse_export(checkpoint: Path, file: Path) -> None:
    """From now on a graph that was exported before is not exported again, which takes a minute.

    Args:
        file: the .onnx of the checkpoint.
    """
    import onnx
    import torch

    from common import onnx_graph
    from common.inference_graph import InferenceGraph
    from common.models import load_model
    from phase4_deployment import export_onnx

    export = onnx_graph.write_onnx
    graph = InferenceGraph(load_model(checkpoint, torch.device("cpu")).model)
    known = {fingerprint(graph): file.read_bytes()}

    def write_onnx(graph, path, metadata, opset=onnx_graph.DEFAULT_OPSET):
        key = fingerprint(graph)
        if key not in known or opset != onnx_graph.DEFAULT_OPSET:
            export(graph, path, metadata, opset)
            known[key] = path.read_bytes()
            return
        model = onnx.load_from_string(known[key])
        del model.metadata_props[:]
        onnx.helper.set_model_props(model, dict(metadata))
        onnx.save_model(model, path)

    onnx_graph.write_onnx = export_onnx.write_onnx = write_onnx


def try_one_package() -> None:
    """From the second package on its files are not loaded by other processes any more."""
    from phase4_deployment import cold_start, export_all

    only_once(cold_start, "measure_cold_starts", None)
    only_once(export_all, "check_package", {})


def only_once(module: Any, name: str, otherwise: Any) -> None:
    function, calls = getattr(module, name), itertools.count()
    setattr(module, name, lambda *args: otherwise if next(calls) else function(*args))


def fingerprint(graph: Any) -> str:
    """Of the weights and settings of an InferenceGraph; frozen normalisation is the same graph."""
    digest = hashlib.sha256()
    for name, tensor in sorted(graph.state_dict().items()):
        if not name.endswith("num_batches_tracked"):
            digest.update(name.encode() + tensor.cpu().numpy().tobytes())
    settings = {
        name: value
        for name, value in vars(graph).items()
        if not name.startswith("_") and name != "training"
    }
    digest.update(repr(sorted(settings.items())).encode())
    return digest.hexdigest()


if __name__ == "__main__":
    main()
