"""TrackEval's own figures for one sequence or several, under the names of mot_metrics.scores."""

import contextlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import trackeval

COUNTS = {"id_switches": "IDSW", "fragments": "Frag", "fp": "CLR_FP", "fn": "CLR_FN"}


def trackeval_scores(
    folder: Path, files: Mapping[str, tuple[Path, Path, int]], *, benchmark: str
) -> dict[str, dict[str, float]]:
    """Scores of every sequence and "combined".

    Args:
        folder: an empty folder to lay the files out in.
        files: sequence name -> (ground truth, tracks, number of frames).
        benchmark: "MOT17" preprocesses, "MOT15" does not.
    """
    tracks_folder = folder / "trackers" / "ours" / "data"
    tracks_folder.mkdir(parents=True)
    for name, (ground_truth, tracks, _) in files.items():
        target = folder / "gt" / name / "gt" / "gt.txt"
        target.parent.mkdir(parents=True)
        target.write_bytes(ground_truth.read_bytes())
        (tracks_folder / f"{name}.txt").write_bytes(tracks.read_bytes())
    config = {
        "GT_FOLDER": str(folder / "gt"),
        "TRACKERS_FOLDER": str(folder / "trackers"),
        "TRACKERS_TO_EVAL": ["ours"],
        "BENCHMARK": benchmark,
        "SEQ_INFO": {name: frames for name, (*_, frames) in files.items()},
        "SKIP_SPLIT_FOL": True,
        "PRINT_CONFIG": False,
    }
    quiet = {"PRINT_CONFIG": False}
    with contextlib.redirect_stdout(io.StringIO()):
        dataset = trackeval.datasets.MotChallenge2DBox(config)
        metrics = [
            trackeval.metrics.HOTA(),
            trackeval.metrics.CLEAR(quiet),
            trackeval.metrics.Identity(quiet),
        ]
        results: dict[str, Any] = {metric.get_name(): {} for metric in metrics}
        for name in files:
            raw = dataset.get_raw_seq_data("ours", name)
            data = dataset.get_preprocessed_seq_data(raw, "pedestrian")
            for metric in metrics:
                results[metric.get_name()][name] = metric.eval_sequence(data)
    for metric in metrics:
        of_metric = results[metric.get_name()]
        of_metric["combined"] = metric.combine_sequences(dict(of_metric))
    return {name: _named(results, name) for name in [*files, "combined"]}


def _named(results: dict[str, Any], name: str) -> dict[str, float]:
    hota, clear, identity = (results[metric][name] for metric in ("HOTA", "CLEAR", "Identity"))
    named = {score: float(np.mean(hota[score])) for score in ("HOTA", "DetA", "AssA")}
    named = {score.lower(): value for score, value in named.items()}
    named |= {"mota": float(clear["MOTA"]), "motp": float(clear["MOTP"])}
    named |= {"idf1": float(identity["IDF1"])}
    return named | {ours: float(clear[theirs]) for ours, theirs in COUNTS.items()}
