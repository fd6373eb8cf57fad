"""One training in many processes, one for each GPU.

    torchrun --nproc_per_node=4 phase1_training/train.py --data-path /path/to/coco

Every process ("rank") holds the whole model and trains on its share of each batch; what they must
agree on is summed here. On GPUs tensors travel through NCCL and everything else through gloo on the
CPU, on a CPU all of it through gloo.

Gradients are summed by hand after the backward pass, not by DistributedDataParallel inside of it:

* a rank that runs out of memory in the middle of its backward pass repeats it alone, in smaller
  parts, and joins the others later; DDP would have sent half of the gradients by then;
* gradients accumulated over several backward passes need no special mode;
* a rank without any image in the uneven last batch contributes zeros;
* losses are sums until the gradients' sum is divided by the count of samples over all ranks, so the
  mean is that of the whole batch, not a mean of means.

The price is that communication does not hide behind the backward pass.

**Interrupts.** torchrun gives every rank a session of its own: Ctrl-C reaches torchrun alone, which
sends SIGINT, as any SIGTERM, on to the process group of each rank. They receive it at different
steps, and a rank that stopped at once would leave the others waiting. So each step asks
`ranks.any(stop.received is not None)` (see common.stop_signal) and all stop after the same one.
torchrun kills what is left after 30 s (`--shutdown-timeout`) and exits with 1 itself.

**Restarts.** With `--max-restarts` torchrun starts all ranks again, with the same command, when one
is lost, whatever its reason; with a c10d rendezvous on every machine, and each of its agents counts
its own restarts. So a rank may be a restarted one although its own count is 0, and a count above 0
may belong to a command that was refused at its first start. What a restart has to go on with is
told by the launch: `Ranks.launches` names it, and every checkpoint that it has written.
The agents also keep one store over restarts, in which a rank finds addresses of the last time. The
connection then fails and costs a restart, unless SHARED_STORE tells them to make a new one.
"""

import contextlib
import logging
import os
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from common.cli import UserError, log
from common.environment import select_device

# How long ranks wait for each other, for instance while the main one writes a checkpoint. A rank
# that ends is noticed at once.
TIMEOUT = timedelta(minutes=10)
SHARED_STORE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"
POLL_S = 0.2  # between two looks at whether the main rank is done with a long task
BUCKET_BYTES = 25 * 2**20  # gradients travel together: fewer, larger messages
Item = TypeVar("Item")


class Ranks:
    """This process among those of the run; `join` makes it. Alone, every method changes nothing.

    All ranks must call the same methods in the same order.

    Attributes:
        rank: this process's number, from 0.
        size: number of processes.
        device: where this rank computes.
        launches: names of the torchrun agents that started the ranks, which keep them over
            restarts and share them with no other launch; empty without torchrun.
        restarts: how many of its `--max-restarts` torchrun has used; of several agents the one
            that has used the most.
    """

    def __init__(self, rank: int, size: int, device: torch.device):
        self.rank = rank
        self.size = size
        self.device = device
        self.launches: tuple[str, ...] = ()
        self.restarts = 0

    def learn_of_launch(self) -> None:
        """Fills `launches` and `restarts`, the same on all ranks."""
        found = [agent for (agent,) in self.gather([_launched_by()])]
        self.launches = tuple(sorted({name for name, _ in found if name}))
        self.restarts = max(restarts for _, restarts in found)
        shares_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        if self.is_main and shares_store and _number("TORCHELASTIC_MAX_RESTARTS", 0):
            log.warning("Restarts may fail by what an earlier one left: set %s", SHARED_STORE)

    @property
    def is_main(self) -> bool:
        """Whether this is the rank that writes the files."""
        return self.rank == 0

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        """Replaces `tensor` by its sum over the ranks, without waiting for a GPU."""
        if self.size > 1:
            with _others_expected():
                dist.all_reduce(tensor)
        return tensor

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replaces every gradient by its sum over the ranks.

        A gradient of None counts as zeros and comes back filled. The order of `parameters` must be
        the model's, the same on all ranks. The new gradients are views of a few large buffers.
        """
        if self.size == 1:
            return
        with _others_expected():
            pending = [
                dist.all_reduce(_gather_gradients(bucket), async_op=True)
                for bucket in _buckets([p for p in parameters if p.requires_grad])
            ]
            for work in pending:
                work.wait()

    def mean_buffers(self, buffers: Iterable[torch.Tensor]) -> None:
        """Makes the running statistics of BatchNorm layers equal on all ranks.

        Floating-point buffers (running_mean, running_var) become their mean, whole numbers
        (num_batches_tracked) their maximum.
        """
        if self.size == 1:
            return
        with _others_expected():
            for buffer in buffers:
                if buffer.is_floating_point():
                    dist.all_reduce(buffer)
                    buffer.div_(self.size)
                else:
                    dist.all_reduce(buffer, op=dist.ReduceOp.MAX)

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set on any rank. Goes through the CPU: no GPU is waited for."""
        if self.size == 1:
            return flag
        flags = torch.tensor([flag], dtype=torch.uint8)
        with _others_expected():
            dist.all_reduce(flags, op=dist.ReduceOp.MAX)
        return bool(flags.item())

    def barrier(self) -> None:
        """Waits until every rank is here."""
        self.any(False)

    @contextlib.contextmanager
    def main_first(self) -> Iterator[None]:
        """Lets the others wait at the end of the block until the main rank has left it.

        For work that may take hours, for which `barrier` would give up after TIMEOUT. They ask
        again and again, since a signal would not interrupt them while they wait inside of torch.
        """
        if self.size == 1:
            yield
            return
        # A name of its own: torchrun may keep one store over restarts, with all that is in it.
        store, key = dist.distributed_c10d._get_default_store(), self.broadcast(uuid.uuid4().hex)
        try:
            yield
        finally:
            if self.is_main:  # also after an error: the others then miss it at the barrier
                store.set(key, "done")
        with _others_expected():
            while not store.check([key]):
                time.sleep(POLL_S)
        self.barrier()

    def gather(self, items: list[Item]) -> list[list[Item]]:
        """The lists of all ranks, by rank, for every rank. Items are pickled."""
        lists: list[Any] = [items] * self.size
        if self.size > 1:
            with _others_expected():
                dist.all_gather_object(lists, items)
        return lists

    def broadcast(self, value: Item) -> Item:
        """The main rank's `value`, for every rank. It is pickled."""
        values: list[Any] = [value]
        if self.size > 1:
            with _others_expected():
                dist.broadcast_object_list(values, src=0)
        return values[0]


@contextlib.contextmanager
def join(device_name: str) -> Iterator[Ranks]:
    """Joins the other processes torchrun started; alone without torchrun.

    Ranks other than the main one log warnings only.

    Args:
        device_name: as `--device`. Among several ranks, "auto" and "cuda" give each its own GPU.

    Raises:
        UserError: the device is missing or cannot be shared, there are more ranks than GPUs, or
            the ranks do not find each other; later, also when another rank is lost.
    """
    rank, size = _number("RANK", 0), _number("WORLD_SIZE", 1)
    if size == 1 or "RANK" not in os.environ:  # some clusters set WORLD_SIZE for all programs
        alone = Ranks(0, 1, select_device(device_name))
        alone.learn_of_launch()
        yield alone
        return
    device = _device_of_rank(device_name)
    _start(device)
    level = log.level
    if rank > 0:
        log.setLevel(max(level, logging.WARNING))
    try:
        ranks = Ranks(rank, size, device)
        ranks.learn_of_launch()
        yield ranks
    except BaseException:
        # Other ranks may never answer what is still under way on the GPU: not waited for.
        dist.distributed_c10d._abort_process_group()
        raise
    else:
        dist.destroy_process_group()
    finally:
        log.setLevel(level)


def _number(variable: str, default: int) -> int:
    text = os.environ.get(variable, str(default))
    if not text.isdecimal():
        raise UserError(f"{variable}={text}", "not a whole number", "start the run with torchrun")
    return int(text)


def _launched_by() -> tuple[str, int]:
    """What names this rank's torchrun agent (empty without one), and the restarts it has counted.

    An agent keeps the errors of its ranks in a folder of its own, which it makes anew for every
    launch: NAME/attempt_0/0/error.json.
    """
    folders = Path(os.environ.get("TORCHELASTIC_ERROR_FILE", "")).parents
    name = folders[2].name if len(folders) > 2 else ""
    return name, _number("TORCHELASTIC_RESTART_COUNT", 0)


def _device_of_rank(name: str) -> torch.device:
    """The device of this rank among those on its machine."""
    local_rank, local_size = _number("LOCAL_RANK", 0), _number("LOCAL_WORLD_SIZE", 1)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = select_device(name)
    if name not in ("cuda", "cpu"):
        what = f"one device cannot serve {local_size} processes"
        raise UserError(f"--device {name}", what, "use --device cuda, or start without torchrun")
    if device.type == "cpu":
        return device
    if local_size > torch.cuda.device_count():
        gpus = torch.cuda.device_count()
        what = f"{local_size} processes for {gpus} GPUs"
        raise UserError("torchrun", what, f"use --nproc_per_node={gpus}, or --device cpu")
    return torch.device("cuda", local_rank)


def _start(device: torch.device) -> None:
    """Meets the other ranks.

    The one process group speaks NCCL for tensors on a GPU and gloo for those on the CPU.
    """
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            timeout=TIMEOUT,
            device_id=device if on_gpu else None,  # connects now, where a failure is understood
        )
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        remedy = "start all of them with one torchrun command"
        what = f"the processes did not find each other ({reason:.200})"
        raise UserError("torchrun", what, remedy) from error


@contextlib.contextmanager
def _others_expected() -> Iterator[None]:
    """Tells the loss of another rank in one line; it ended with a message of its own."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if not isinstance(error, dist.DistError) and "gloo/transport" not in text:
            raise  # a mistake of this program
        reason = " ".join(text.split("] ")[-1].split(". ")[0].split())
        what = f"another process of this run is lost ({reason:.200})"
        raise UserError("torchrun", what, "see its own message; go on with --resume") from error


def _buckets(parameters: Sequence[torch.nn.Parameter]) -> Iterator[list[torch.nn.Parameter]]:
    """Splits `parameters`, in their order, by dtype and device and at BUCKET_BYTES."""
    kinds: dict[tuple, list[torch.nn.Parameter]] = {}
    for parameter in parameters:
        kinds.setdefault((parameter.dtype, parameter.device), []).append(parameter)
    for same_kind in kinds.values():
        bucket: list[torch.nn.Parameter] = []
        size = 0
        for parameter in same_kind:
            if bucket and size + parameter.nbytes > BUCKET_BYTES:
                yield bucket
                bucket, size = [], 0
            bucket.append(parameter)
            size += parameter.nbytes
        yield bucket


def _gather_gradients(bucket: Sequence[torch.nn.Parameter]) -> torch.Tensor:
    """Moves the gradients into one new 1-D tensor, of which they become views.

    Each view has its parameter's memory layout, for instance channels_last, so the elements stand
    in the same order on all ranks and the optimizer reads them as before.
    """
    flat = torch.zeros(
        sum(p.numel() for p in bucket), dtype=bucket[0].dtype, device=bucket[0].device
    )
    views, offset = [], 0
    for parameter in bucket:
        views.append(flat.as_strided(parameter.shape, parameter.stride(), offset))
        offset += parameter.numel()
    pairs = [(v, p.grad) for v, p in zip(views, bucket, strict=True) if p.grad is not None]
    if pairs:
        torch._foreach_copy_([view for view, _ in pairs], [gradient for _, gradient in pairs])
    for parameter, view in zip(bucket, views, strict=True):
        parameter.grad = view
    return flat
