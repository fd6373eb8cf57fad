"""The global random generators, as part of what a training is continued from."""

import random
from typing import Any

import numpy as np
import torch

_PYTHON_STATE_VERSION = 3  # of random.getstate(), the same since Python 2.6


def rng_state() -> dict[str, Any]:
    """The state of Python's, NumPy's and torch's global generators, on the CPU and every GPU.

    Holds tensors and plain values only, so `torch.load(weights_only=True)` reads it back. It is
    this process's own: among several ranks each has another.
    """
    _, python_words, python_gauss = random.getstate()
    numpy: dict[str, Any] = np.random.get_state(legacy=False)  # noqa: NPY002 - libraries draw from it
    words = torch.from_numpy(numpy["state"]["key"].astype(np.int64))
    return {
        "python": {"words": torch.tensor(python_words), "gauss": python_gauss},
        "numpy": {**numpy, "state": {**numpy["state"], "key": words}},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Undoes every draw since `rng_state` returned `state`.

    GPUs there are no more, as when a run goes on on another machine, are passed over.
    """
    python, numpy = state["python"], state["numpy"]
    words = tuple(python["words"].tolist())
    random.setstate((_PYTHON_STATE_VERSION, words, python["gauss"]))
    key = numpy["state"]["key"].numpy().astype(np.uint32)
    np.random.set_state({**numpy, "state": {**numpy["state"], "key": key}})  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    for index, cuda in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(cuda, index)
