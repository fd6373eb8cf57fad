"""Steps of a training in several processes of one machine, timed by the first of them."""

import itertools
import os
import socket
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from common import artifacts, coco, models, paths

if TYPE_CHECKING:
    from phase1_training.distributed import Ranks

WARMUP_STEPS, SUMS = 2, 5


@dataclass(frozen=True)
class Setup:
    """What every rank trains; `batch_size` counts for each."""

    data_path: Path
    architecture: str
    min_size: int | None
    max_size: int | None
    batch_size: int
    rounds: int
    workers: int
    seed: int
    device: str


def measure(setup: Setup, ranks: int) -> dict[str, Any]:
    """Trains in so many processes of this machine.

    Returns:
        of the first rank: `step_ms` and `allreduce_ms` (all gradients; empty for one rank), and
        the bytes of its gradients, `gradient_bytes`.
    """
    import torch

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        torch.multiprocessing.spawn(_train, args=(ranks, port, setup, result), nprocs=ranks)
        return artifacts.read_json(result)


def _train(rank: int, size: int, port: int, setup: Setup, result: Path) -> None:
    """One rank, under the environment that torchrun would give it."""
    import torch

    from phase1_training.distributed import join

    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    os.environ |= {"LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1"}
    os.environ["MASTER_PORT"] = str(port)
    if setup.device == "cpu":
        torch.set_num_threads(max(1, torch.get_num_threads() // size))
    with join(setup.device) as ranks:
        found = _steps(setup, ranks)
        ranks.barrier()
        if ranks.is_main:
            artifacts.write_json(result, found)


def _steps(setup: Setup, ranks: "Ranks") -> dict[str, Any]:
    from benchmarks.training import fine_tuning_form, plain_recipe
    from phase1_training.engine import Trainer
    from phase1_training.training_run import build_loader

    split = coco.training_split(setup.data_path, "train")
    sizes = setup.min_size, setup.max_size
    model = fine_tuning_form(setup.architecture, len(split.class_names) + 1, *sizes)
    recipe = plain_recipe(
        epochs=1,
        batch_size=setup.batch_size,
        optimizer="adamw" if setup.architecture == models.DEMO else "sgd",
        min_size=model.transform.min_size[-1],
    )
    max_size = model.transform.max_size
    loader = build_loader(
        split, recipe, ranks, max_size=max_size, seed=setup.seed, workers=setup.workers
    )
    steps_per_epoch = loader.batches_per_epoch
    trainer = Trainer(
        model.to(ranks.device),
        recipe,
        ranks.device,
        steps_per_epoch,
        ranks=ranks,
        folder=paths.METRICS,
    )
    batches = itertools.chain.from_iterable(loader.epoch(epoch) for epoch in itertools.count(1))

    def step() -> None:
        trainer.train_step(next(batches))

    with trainer.training():
        step_ms = _timed_ms(step, setup.rounds, ranks)
    loader.close()
    for parameter in trainer.parameters:
        parameter.grad = parameter.new_zeros(parameter.shape)
    allreduce_ms = []
    if ranks.size > 1:
        allreduce_ms = _timed_ms(lambda: ranks.sum_gradients(trainer.parameters), SUMS, ranks)
    return {
        "step_ms": step_ms,
        "allreduce_ms": allreduce_ms,
        "gradient_bytes": sum(parameter.nbytes for parameter in trainer.parameters),
    }


def _timed_ms(work: Callable[[], object], rounds: int, ranks: "Ranks") -> list[float]:
    """Milliseconds of every call after WARMUP_STEPS; all ranks begin together."""
    from common.timing import synchronize

    times = []
    for _ in range(WARMUP_STEPS + rounds):
        ranks.barrier()
        synchronize(ranks.device)
        started = perf_counter()
        work()
        synchronize(ranks.device)
        times.append(1e3 * (perf_counter() - started))
    return times[WARMUP_STEPS:]
