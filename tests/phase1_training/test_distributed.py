"""Ranks: what processes of one run agree on, with real processes, and what they say when lost."""

import logging
import math
import os
import signal
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from common.cli import UserError, log
from common.stop_signal import StopSignal
from phase1_training import distributed
from phase1_training.distributed import join
from tests.child_processes import Failure, run_ranks

CPU = torch.device("cpu")


def integers(*shape: int, seed: int) -> torch.Tensor:
    """Whole numbers, whose float sums are exact in any order."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-9, 10, shape, generator=generator).float()


# --- gradients --------------------------------------------------------------------------------

SHAPES = [(4, 3, 3, 3), (7,), (), (5, 2), (64, 8, 1, 1), (3,)]


def parameters() -> list[torch.nn.Parameter]:
    tensors = [torch.zeros(shape) for shape in SHAPES]
    tensors[0] = tensors[0].to(memory_format=torch.channels_last)
    tensors[3] = tensors[3].double()
    made = [torch.nn.Parameter(tensor) for tensor in tensors]
    made[5].requires_grad_(False)
    return made


def gradient(rank: int, index: int) -> torch.Tensor | None:
    """Rank 0 has them all, rank 1 lacks two, later ranks had an empty batch: none."""
    if rank > 1 or (rank == 1 and index in (1, 4)):
        return None
    return integers(*SHAPES[index], seed=10 * rank + index)


def sum_the_gradients(bucket_bytes: int) -> tuple[list, list]:
    distributed.BUCKET_BYTES = bucket_bytes
    with join("cpu") as ranks:
        model = parameters()
        for index, parameter in enumerate(model[:5]):
            made = gradient(ranks.rank, index)
            # The other rank's layout must not matter: the first one has channels last, the second
            # as its backward pass left it.
            if made is not None and ranks.rank == 0 and index == 0:
                made = made.to(memory_format=torch.channels_last)
            parameter.grad = None if made is None else made.to(parameter.dtype)
        ranks.sum_gradients(model)
        return [p.grad for p in model], [p.grad is not None and p.grad.stride() for p in model]


@pytest.mark.parametrize(
    ("size", "bucket_bytes"), [(2, distributed.BUCKET_BYTES), (3, 300), (2, 1)]
)
def test_gradients_are_summed_whatever_the_buckets(size, bucket_bytes):
    expected = [
        sum(g for rank in range(size) if (g := gradient(rank, index)) is not None)
        for index in range(5)
    ]
    layouts = [parameter.stride() for parameter in parameters()[:5]]
    for gradients, strides in run_ranks(sum_the_gradients, size, bucket_bytes):
        for found, wanted in zip(gradients[:5], expected, strict=True):
            assert torch.equal(found.float(), wanted)
        assert gradients[3].dtype == torch.float64
        assert gradients[5] is None, "a frozen parameter has none"
        assert strides[:5] == layouts


def sum_many(rounds: int) -> list[torch.Tensor]:
    """A gradient of None on all ranks comes back as zeros, and summing twice sums twice."""
    with join("cpu") as ranks:
        one, two = torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(2))
        one.grad = torch.full((3,), 1.0 + ranks.rank)
        for _ in range(rounds):
            ranks.sum_gradients([one, two])
        return [one.grad, two.grad]


def test_summing_again_sums_the_sums():
    for one, two in run_ranks(sum_many, 2, 2):
        assert one.tolist() == [6.0] * 3
        assert two.tolist() == [0.0] * 2


IMAGES, TARGETS = integers(7, 6, seed=1), integers(7, 2, seed=2)


def squared_error(model: torch.nn.Module, images: torch.Tensor, targets: torch.Tensor):
    return (model(images) - targets).square().sum()


def small_model() -> torch.nn.Module:
    model = torch.nn.Linear(6, 2)
    with torch.no_grad():
        model.weight.copy_(integers(2, 6, seed=3))
        model.bias.copy_(integers(2, seed=4))
    return model


def train_on_a_share(shares: list[slice], micro_batches: list[int]) -> list[torch.Tensor]:
    """Each rank's images, in so many parts; then the mean over the images of all ranks."""
    with join("cpu") as ranks:
        model, mine = small_model(), shares[ranks.rank]
        images, targets = IMAGES[mine], TARGETS[mine]
        for part in range(micro_batches[ranks.rank]):
            rows = slice(part, None, micro_batches[ranks.rank])
            if len(images[rows]):
                squared_error(model, images[rows], targets[rows]).backward()
        ranks.sum_gradients(model.parameters())
        count = ranks.sum_(torch.tensor(float(len(images))))
        return [p.grad / count for p in model.parameters()]


@pytest.mark.parametrize(
    ("shares", "micro_batches"),
    [
        ([slice(0, 4), slice(4, 7)], [1, 1]),
        ([slice(0, 5), slice(5, 7)], [3, 1]),  # one rank ran out of memory, the other did not
        ([slice(0, 7), slice(7, 7)], [1, 1]),  # nothing left for the second
        ([slice(0, 1), slice(1, 6), slice(6, 7)], [1, 2, 1]),
    ],
)
def test_the_gradient_is_that_of_the_whole_batch(shares, micro_batches):
    """Uneven shares, empty ones and repeated parts: exactly the mean over all images."""
    model = small_model()
    (squared_error(model, IMAGES, TARGETS) / len(IMAGES)).backward()
    results = run_ranks(train_on_a_share, len(shares), shares, micro_batches)
    for gradients in results:
        for found, parameter in zip(gradients, model.parameters(), strict=True):
            torch.testing.assert_close(found, parameter.grad, rtol=1e-6, atol=1e-6)
            assert torch.equal(found, gradients[0]) or found.shape != gradients[0].shape
    for gradients in results[1:]:
        assert all(map(torch.equal, gradients, results[0])), "ranks must not drift apart"


# --- what else is exchanged -------------------------------------------------------------------


def exchange() -> dict:
    with join("auto") as ranks:
        mean, tracked = torch.tensor([1.0, 5.0]) * (ranks.rank + 1), torch.tensor(10 + ranks.rank)
        ranks.mean_buffers([mean, tracked])
        tensor = torch.tensor([1.5, ranks.rank])
        ranks.barrier()
        return {
            "me": (ranks.rank, ranks.size, ranks.is_main, ranks.device),
            "sum": (ranks.sum_(tensor) is tensor, tensor.tolist()),
            "gather": ranks.gather([f"image {ranks.rank}"] * ranks.rank),
            "broadcast": ranks.broadcast({"from": ranks.rank}),
            "any": [ranks.any(ranks.rank == number) for number in range(4)],
            "buffers": (mean.tolist(), tracked.item(), tracked.dtype),
            "informs": log.isEnabledFor(logging.INFO),
        }


@pytest.mark.parametrize("size", [2, 3])
def test_everything_exchanged_is_known_to_all(size):
    results = run_ranks(exchange, size)
    for rank, found in enumerate(results):
        assert found["me"] == (rank, size, rank == 0, CPU)
        assert found["sum"] == (True, [1.5 * size, sum(range(size))])
        assert found["gather"] == [[f"image {number}"] * number for number in range(size)]
        assert found["broadcast"] == {"from": 0}
        assert found["any"] == [number < size for number in range(4)]
        mean = (size + 1) / 2  # of 1, 2, ... size
        assert found["buffers"] == ([mean, 5 * mean], 9 + size, torch.int64)
    assert not any(found["informs"] for found in results[1:])


def test_alone_nothing_is_changed_and_no_group_is_made(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "4")  # as some clusters set for every program
    level = log.level
    with join("cpu") as ranks:
        assert not dist.is_initialized()
        assert (ranks.rank, ranks.size, ranks.is_main, ranks.device) == (0, 1, True, CPU)
        one, two = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(2))
        one.grad = torch.tensor([math.pi, math.nan])
        before = one.grad
        ranks.sum_gradients([one, two])
        assert one.grad is before
        assert two.grad is None
        ranks.mean_buffers([one.data])
        assert one.tolist() == [0, 0]
        assert ranks.sum_(one.data).tolist() == [0, 0]
        assert ranks.gather([1, 2]) == [[1, 2]]
        assert ranks.broadcast("x") == "x"
        assert [ranks.any(True), ranks.any(False)] == [True, False]
        ranks.barrier()
    assert log.level == level


# --- stopping and getting lost ----------------------------------------------------------------


def steps_until_stopped(signal_after: list[int | None]) -> int:
    steps = 0
    with join("cpu") as ranks, StopSignal() as stop:
        while not ranks.any(stop.received is not None):
            steps += 1
            ranks.sum_(torch.ones(1))
            if steps == signal_after[ranks.rank]:
                signal.raise_signal(signal.SIGTERM)
    return steps


@pytest.mark.parametrize("signal_after", [[3, 5], [None, 4], [2, None], [7, 7]])
def test_signals_at_different_steps_stop_all_after_the_same(signal_after):
    first = min(step for step in signal_after if step)
    assert run_ranks(steps_until_stopped, 2, signal_after) == [first] * 2


def lose_rank_1(method: str) -> str:
    try:
        with join("cpu") as ranks:
            ranks.barrier()
            if ranks.rank == 1:
                os._exit(3)
            parameter = torch.nn.Parameter(torch.zeros(2))
            {
                "any": lambda: ranks.any(True),
                "sum_": lambda: ranks.sum_(torch.zeros(2)),
                "sum_gradients": lambda: ranks.sum_gradients([parameter]),
                "mean_buffers": lambda: ranks.mean_buffers([parameter.data]),
                "gather": lambda: ranks.gather([1]),
                "broadcast": lambda: [ranks.broadcast(1), ranks.broadcast(2), ranks.barrier()],
            }[method]()
    except UserError as error:
        assert not dist.is_initialized()
        return str(error)
    return "nothing noticed"


@pytest.mark.parametrize(
    "method", ["any", "sum_", "sum_gradients", "mean_buffers", "gather", "broadcast"]
)
def test_a_lost_rank_is_one_line_at_once(method):
    line, lost = run_ranks(lose_rank_1, 2, method)
    assert lost == Failure("exit", "3")
    assert line.startswith("torchrun: another process of this run is lost (")
    assert "peer" in line or "reset" in line.lower(), line
    assert line.endswith("– see its own message; go on with --resume")
    assert "\n" not in line


def let_the_main_rank_work(how: str) -> list[float]:
    """Twice, and for longer than TIMEOUT the first time; how long that took since the start."""
    distributed.TIMEOUT = timedelta(seconds=2 if how == "long" else 60)
    started, waited = time.monotonic(), []
    with join("cpu") as ranks:
        for work_s in (2.5, 0.1):
            with ranks.main_first():
                if ranks.is_main and how == "long":
                    time.sleep(work_s)
                elif ranks.is_main and how == "killed":
                    os._exit(3)
                elif ranks.is_main and how == "fails":
                    raise UserError("the data", "are wrong", "mend them")
            waited.append(time.monotonic() - started)
    return waited


def test_the_main_rank_may_work_for_longer_than_the_timeout():
    for first, second in run_ranks(let_the_main_rank_work, 3, "long"):
        assert first >= 2.5
        assert second >= 2.6


def test_alone_the_main_rank_works_at_once():
    assert len(let_the_main_rank_work("at once")) == 2


@pytest.mark.parametrize(
    ("how", "end"), [("killed", "exit: 3"), ("fails", "UserError: the data: are wrong – mend them")]
)
def test_others_do_not_wait_for_a_main_rank_that_is_gone(how, end):
    main, other = run_ranks(let_the_main_rank_work, 2, how)
    assert f"{main.kind}: {main.text}" == end
    assert other.kind == "UserError"
    assert "another process of this run is lost (" in other.text


def wait_too_long() -> None:
    distributed.TIMEOUT = timedelta(seconds=2)
    with join("cpu") as ranks:
        if ranks.rank == 1:
            time.sleep(2.5)
        ranks.barrier()


def test_a_rank_that_never_answers_ends_the_run():
    for failure in run_ranks(wait_too_long, 2):
        assert failure.kind == "UserError"
        assert "another process of this run is lost" in failure.text


def fail_by_a_bug() -> None:
    with join("cpu") as ranks:
        ranks.sum_(torch.zeros(4, dtype=torch.uint16))


def test_a_bug_is_not_taken_for_a_lost_rank():
    for failure in run_ranks(fail_by_a_bug, 2):
        assert failure.kind in ("RuntimeError", "ValueError", "NotImplementedError")


def leave_with_an_error() -> bool:
    try:
        with join("cpu") as ranks:
            ranks.barrier()
            raise ValueError
    except ValueError:
        return not dist.is_initialized() and log.level == logging.NOTSET
    return False


def test_the_group_is_gone_after_an_error():
    assert run_ranks(leave_with_an_error, 2) == [True, True]


# --- who cannot join --------------------------------------------------------------------------


def join_impatiently() -> None:
    distributed.TIMEOUT = timedelta(seconds=0.2)
    with join("cpu"):
        pass


def test_a_rank_whose_others_never_come_says_so():
    (failure,) = run_ranks(join_impatiently, 2, started=1)
    assert failure.kind == "UserError"
    assert "torchrun: the processes did not find each other (" in failure.text


@pytest.mark.parametrize(
    ("device", "gpus", "message"),
    [
        ("cuda", 1, "torchrun: 2 processes for 1 GPUs – use --nproc_per_node=1, or --device cpu"),
        ("auto", 1, "torchrun: 2 processes for 1 GPUs"),
        ("cuda", 0, "--device cuda: no CUDA device found"),
        ("cuda:0", 2, "--device cuda:0: one device cannot serve 2 processes"),
        ("tpu", 2, "--device tpu: unknown"),
    ],
)
def test_what_cannot_be_shared_is_refused_before_any_rank_is_awaited(
    monkeypatch, device, gpus, message
):
    for variable, text in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(variable, text)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    with pytest.raises(UserError, match=message), join(device):
        pass


@pytest.mark.parametrize("variable", ["RANK", "WORLD_SIZE", "LOCAL_RANK"])
def test_a_mistaken_environment_is_named(monkeypatch, variable):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.setenv(name, "-2" if name == variable else "2")
    with pytest.raises(UserError, match=f"{variable}=-2: not a whole number"), join("cpu"):
        pass


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_each_rank_gets_its_own_gpu(monkeypatch):
    count = torch.cuda.device_count()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(count))
    monkeypatch.setenv("LOCAL_RANK", str(count - 1))
    assert distributed._device_of_rank("auto") == torch.device("cuda", count - 1)
