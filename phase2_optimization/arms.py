"""What is timed: predictors over fixed batches of images."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from common import timing
from common.models import Detections, Predictor

Pair = tuple[str, int]  # a variant and a batch size
AGAIN = " (again)"  # ends the name of an arm's second self: any difference of the two is noise


def second_self(pair: Pair) -> Pair:
    """The same variant at the same batch size, built once more."""
    return pair[0] + AGAIN, pair[1]


class ArmFailedError(Exception):
    """An arm could not be built or called; the cause is what it raised.

    Attributes:
        arm: its variant and batch size.
        is_out_of_memory: whether it did not fit beside the others.
    """

    def __init__(self, arm: Pair, error: Exception):
        super().__init__(*arm)
        self.arm = arm
        self.is_out_of_memory = timing.is_out_of_memory(error)


class Arm:
    """A predictor over a fixed round of batches; keeps what it found in each."""

    def __init__(self, pair: Pair, predict: Predictor, batches: Sequence[list[np.ndarray]]):
        self.found: dict[int, list[Detections]] = {}
        self._pair, self._predict, self._batches = pair, predict, batches
        self._calls = 0

    def __call__(self) -> None:
        index = self._calls % len(self._batches)
        self._calls += 1
        try:
            self.found[index] = self._predict(self._batches[index])
        except Exception as error:
            raise ArmFailedError(self._pair, error) from error


@dataclass
class Timed:
    """What came of arms that were timed in the same rounds, by variant and batch size. The arms
    themselves, which hold memory, may go.

    Attributes:
        found: batch -> what was detected in it.
        ms: milliseconds per call, shape (rounds,).
        rounds_id: number of this set of rounds; only times of one set can be compared.
    """

    found: dict[Pair, dict[int, list[Detections]]] = field(default_factory=dict)
    ms: dict[Pair, np.ndarray] = field(default_factory=dict)
    rounds_id: int = 0
