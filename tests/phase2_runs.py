"""Running the scripts of phase 2 on tiny inputs, and what they must leave alone when they fail."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from common import timing
from phase2_optimization import (
    amp_comparison,
    amp_plot,
    benchmark_inference,
    benchmark_plot,
    flops,
    gpu_profiler,
    memory_timeline,
    mixed_precision,
)
from phase2_optimization.amp_arm import Precision
from phase2_optimization.variants import stock_predictor


@dataclass(frozen=True)
class Script:
    """One of the scripts.

    Attributes:
        report, picture: names of the files it writes, the report's without its suffix.
        plot: the module whose `draw` makes the picture.
        quick: options of a run that is as short as can be.
    """

    main: Callable[[Sequence[str] | None], int]
    report: str
    picture: str
    plot: ModuleType
    quick: str


SCRIPTS = {
    "benchmark_inference": Script(
        benchmark_inference.main,
        "inference_benchmark",
        "inference_benchmark.png",
        benchmark_plot,
        "--variants channels_last --batch-sizes 1 --num-iterations 1 --max-images 1",
    ),
    "mixed_precision": Script(
        mixed_precision.main,
        "amp_comparison",
        "optimization_comparison.png",
        amp_plot,
        "--steps 1 --batch-size 1 --seeds 1 --max-images 1",
    ),
    "gpu_profiler": Script(
        gpu_profiler.main,
        "profile",
        "profile_memory.png",
        memory_timeline,
        "--steps 1 --batch-size 1 --amp off",
    ),
}


STAND_INS = {  # FP32 under AMP's name: faults of an arm need no bfloat16, which takes long
    "fp32": Precision("the baseline"),
    "amp_bf16": Precision("stands in for bfloat16", tf32=True),
}


def arguments(name: str, model: Path, data: Path, output: Path, *more: object) -> list[str]:
    """Of a quick run on the CPU; later options replace earlier ones."""
    paths = ["--model-path", model, "--data-path", data, "--output", output, "--device", "cpu"]
    return [str(word) for word in (*paths, *SCRIPTS[name].quick.split(), *more)]


def run(name: str, *words: object) -> int:
    """Calls the script with `arguments`; its exit status, also where argparse ends it."""
    try:
        return SCRIPTS[name].main(arguments(name, *words))  # type: ignore[arg-type]
    except SystemExit as stopped:
        return int(stopped.code or 0)


def write_older(folder: Path) -> dict[str, bytes]:
    """Earlier results of every script, which a failing run must not touch; returns `contents`."""
    folder.mkdir(parents=True, exist_ok=True)
    for script in SCRIPTS.values():
        for file in (f"{script.report}.json", script.picture, "profile_trace.json.gz"):
            (folder / file).write_bytes(b'{"older": true}')
    return contents(folder)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file in a folder, temporary ones included."""
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def read(folder: Path, script: str) -> dict[str, Any]:
    """The report of a script; NaN and Infinity, which JSON does not have, are an error."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    text = (folder / f"{SCRIPTS[script].report}.json").read_text(encoding="utf-8")
    return json.loads(text, parse_constant=refuse)


def rows_of(report: dict[str, Any], variant: str) -> dict[int, dict[str, Any]]:
    """batch size -> row of a variant in an inference_benchmark.json."""
    return {row["batch_size"]: row for row in report["results"] if row["variant"] == variant}


def altered(change):
    """A builder of the stock predictor whose detections go through `change(images, found)`."""

    def build(model, workshop):
        predict = stock_predictor(model, workshop.device)
        return lambda images: change(images, predict(images))

    return build


def arms_of(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """name -> arm of an amp_comparison.json."""
    return {arm["name"]: arm for arm in report["arms"]}


def shorten(patch: pytest.MonkeyPatch) -> None:
    """Leaves out what takes longer than the rest: finding the highest rate of the machine, timing
    many inferences, collecting garbage."""
    patch.setattr(flops, "MATMUL_SIDES", (64,))
    patch.setattr(flops, "CONVOLUTIONS", ((1, 8, 16),))
    patch.setattr(amp_comparison, "INFERENCE_ROUNDS", 2)
    patch.setattr(timing, "release_free_memory", lambda device: None)
