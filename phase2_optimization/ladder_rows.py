"""The rows of an inference benchmark: what is known of a variant at a batch size."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from common import timing
from common.comparison import compare, noise_between
from common.models import Detections
from phase2_optimization import validity
from phase2_optimization.arms import Pair, Timed, second_self
from phase2_optimization.variants import BASELINE, VARIANTS, rungs_below

if TYPE_CHECKING:
    import torch

UNTIMED = "untimed: in every round the clock went back or the machine slept"
Row = dict[str, Any]
Noise = dict[str, Any]  # the `noise` of a Comparison


@dataclass
class Check:
    """What is known of a variant before it is timed."""

    failure: str = ""  # why it cannot run at all
    build_s: float | None = None  # building it and its first call: export, compilation, calibration
    accuracy: dict[str, Any] = field(default_factory=dict)
    found: list[Detections] = field(default_factory=list)  # on the evaluated images
    found_strict: list[Detections] = field(default_factory=list)  # exact rungs on CUDA, no TF32
    peak_mib: dict[int, float | None] = field(default_factory=dict)  # by batch size
    out_of_memory: set[int] = field(default_factory=set)  # batch sizes


class Rows:
    """Makes rows of what was checked and timed.

    Attributes:
        rows: one per variant and batch size, with the keys of the report's `results`.
        times: (variant, batch size) -> milliseconds per call; rows with the same `rounds_id` were
            timed in the same rounds.
        noise: batch size -> ratio and interval of the baseline against its second self, in the
            rounds that the baseline's row is from.
        anchor: the arm that is in the rounds of all batch sizes.
    """

    def __init__(self, checks: Mapping[str, Check], device: "torch.device", seed: int):
        self.rows: list[Row] = []
        self.times: dict[Pair, np.ndarray] = {}
        self.noise: dict[int, dict[str, Any]] = {}
        self.anchor: Pair | None = None
        self._checks, self._device, self._seed = checks, device, seed

    def append(self, name: str, batch_size: int, timed: Timed) -> None:
        check, ms = self._checks[name], timed.ms.get((name, batch_size))
        row: Row = {
            "variant": name,
            "batch_size": batch_size,
            "iterations": 0 if ms is None else len(ms),
            "rounds_id": None if ms is None else timed.rounds_id,
            "throughput_img_s": None,
            "drift_free_img_s": None,
            "latency_ms": None,
            "peak_memory_mib": check.peak_mib.get(batch_size),
            "speedup": None,
            "step": None,
            "parity": None,
            "map": check.accuracy.get("map"),
            "map_50": check.accuracy.get("map_50"),
            "verdict": None,
            "status": check.failure or ("oom" if ms is None else UNTIMED),
        }
        self.rows.append(row)
        if ms is None or not len(ms):
            return
        self.times[name, batch_size] = ms
        row["latency_ms"] = timing.summarise(ms)
        row["throughput_img_s"] = batch_size / row["latency_ms"]["p50"] * 1e3
        row["drift_free_img_s"] = row["throughput_img_s"] * self._slowdown(timed)
        noise = self._noise(batch_size, timed)
        if name == BASELINE and noise:
            self.noise[batch_size] = noise
        if (BASELINE, batch_size) in timed.ms:
            self._compare(row, timed, noise)
        row["step"] = self._step(name, batch_size, timed, noise)
        row["status"] = self._status(name, row)

    def _noise(self, batch_size: int, timed: Timed) -> Noise | None:
        """What the baseline and its second self differ by in these rounds, if both are in them."""
        baseline = (BASELINE, batch_size)
        if not {baseline, second_self(baseline)} <= timed.ms.keys():
            return None
        return noise_between(timed.ms[baseline], timed.ms[second_self(baseline)], self._seed)

    def _compare(self, row: Row, timed: Timed, noise: Noise | None) -> None:
        """Fills in what sets a row beside the baseline."""
        name, batch_size = row["variant"], row["batch_size"]
        baseline, ms = timed.ms[BASELINE, batch_size], timed.ms[name, batch_size]
        against = compare(baseline, ms, seed=self._seed, noise=noise)
        row["speedup"] = against.as_json()
        row["parity"] = self._parity(name, batch_size, timed)
        row["verdict"] = "baseline" if name == BASELINE else against.beyond_noise

    def _slowdown(self, timed: Timed) -> float:
        """How many times as long the anchor takes in these rounds as in those of its own row."""
        if self.anchor not in self.times or self.anchor not in timed.ms:
            return 1.0
        return float(np.median(timed.ms[self.anchor]) / np.median(self.times[self.anchor]))

    def _step(
        self, name: str, batch_size: int, timed: Timed, noise: Noise | None
    ) -> dict[str, Any] | None:
        """How many times as fast the variant is as the next rung below that was timed.

        The verdict asks for as much as that against the baseline: equal arms can be as lucky here.
        """
        rungs = ((rung, batch_size) for rung in rungs_below(name))
        below = next((rung for rung in rungs if rung in timed.ms), None)
        if below is None:
            return None
        ms = timed.ms[name, batch_size]
        compared = compare(timed.ms[below], ms, seed=self._seed, noise=noise)
        return {"over": below[0], **compared.as_json(), "verdict": compared.beyond_noise}

    def _parity(self, name: str, batch_size: int, timed: Timed) -> dict[str, float | None]:
        """Against the baseline, on the evaluated images and on the timed batches."""
        reference, found = list(self._checks[BASELINE].found), list(self._checks[name].found)
        of_baseline, own = (timed.found[each, batch_size] for each in (BASELINE, name))
        for index in sorted(of_baseline.keys() & own.keys()):
            reference += of_baseline[index]
            found += own[index]
        return validity.parity(reference, found)

    def _status(self, name: str, row: Row) -> str:
        """ "ok", or "invalid: …" when results are further from the baseline's than tolerated."""
        check, baseline = self._checks[name], self._checks[BASELINE]
        tolerance = VARIANTS[name].tolerance_on(self._device)
        reason = (
            validity.broken(check.found, baseline.found)
            or validity.beyond_map(row["map"], baseline.accuracy["map"], tolerance)
            or validity.beyond_parity(row["parity"], tolerance)
            or validity.inexact_without_tf32(baseline.found, check.found_strict)
        )
        return f"invalid: {reason}" if reason else "ok"
