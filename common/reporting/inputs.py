"""The results that a page is made of: read from an outputs folder, or from its metrics alone."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import artifacts, paths
from common.cli import UserError
from common.reporting import tracking

Report = Mapping[str, Any]

METRICS = (
    *("data_report", "training", "evaluation", "profile", "inference_benchmark"),
    *("amp_comparison", "tracking_eval", "export", "quantization", "onnx_test", "pruning"),
)


@dataclass(frozen=True)
class Inputs:
    """The reports there are, by name; a name that is absent has not been measured."""

    metrics: Mapping[str, Report]
    videos: Mapping[str, Report] = field(default_factory=dict)  # the newest first
    package: Report | None = None
    explained: Report | None = None

    def all(self) -> dict[str, Report]:
        others = {"tracking_explained": self.explained, "package": self.package}
        told = {name: report for name, report in others.items() if report}
        return {**self.metrics, **self.videos, **told}


@dataclass(frozen=True)
class Folders:
    """Where the reports of a run lie."""

    metrics: Path
    models: Path
    videos: Path
    deployment: Path


def folders_of(run: Path) -> Folders:
    """Of an outputs folder, or of a folder with the JSON files themselves, as train.py --output
    makes one.

    Raises:
        UserError: it is neither.
    """
    metrics = run / "metrics" if (run / "metrics").is_dir() else run
    if not any((metrics / f"{name}.json").is_file() for name in METRICS):
        what = "holds no results" if run.is_dir() else "no such folder"
        raise UserError(run, what, "give an outputs folder, or the metrics folder in one")
    if metrics == run:
        return Folders(run, run, run, run)
    return Folders(metrics, run / "models", run / "videos", run / "deployment")


def read_inputs(folders: Folders | None = None) -> Inputs:
    """Reads what there is, by default in outputs/.

    Raises:
        UserError: one of the files is no JSON.
    """
    if folders is None:
        folders = Folders(paths.METRICS, paths.MODELS, paths.VIDEOS, paths.DEPLOYMENT)
    metrics = {
        name: artifacts.read_json(path)
        for name in METRICS
        if (path := folders.metrics / f"{name}.json").is_file()
    }
    trained = artifacts.sidecar(folders.models / paths.BEST_MODEL.name)
    if "training" in metrics and trained.is_file():  # the model it made: is it still the one used?
        digest = artifacts.read_json(trained).get("sha256")
        told = metrics["training"].get("inputs")
        known = told if isinstance(told, Mapping) else {}
        metrics["training"]["inputs"] = {**known, paths.BEST_MODEL.name: digest}
    files = tracking.report_files(folders.videos)
    videos = {path.stem: artifacts.read_json(path) for path in files}
    tracked = {name: report for name, report in videos.items() if "frames_read" in report}
    newest_first = sorted(tracked, key=lambda name: str(tracked[name].get("created")), reverse=True)
    others = (folders.deployment / "package_info.json", folders.metrics / tracking.EXPLAINED)
    package, explained = (artifacts.read_json(p) if p.is_file() else None for p in others)
    return Inputs(metrics, {name: tracked[name] for name in newest_first}, package, explained)
