"""Real child processes that start in milliseconds: to be killed, or to be ranks of one training."""

import ctypes
import multiprocessing
import os
import pickle
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# One process imports torch, the others are forked from it.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["pytest", "torchvision", "phase1_training.training_run"])


@dataclass(frozen=True)
class Failure:
    """How a rank ended without a result: its exception, or its exit status."""

    kind: str
    text: str


def obey_permissions(_: object = None) -> None:
    """From here on the process may do what the permissions of files say, also as root."""
    version_3, every_process_of_its_own = 0x20080522, 0
    header = (ctypes.c_uint32 * 2)(version_3, every_process_of_its_own)
    if os.geteuid() == 0 and ctypes.CDLL(None).capset(header, (ctypes.c_uint32 * 6)()):
        raise OSError("this root cannot give up its capabilities")


def run_ranks(
    work: Callable[..., Any], size: int, *arguments: Any, started: int | None = None
) -> list[Any]:
    """`[work(*arguments) of rank 0, of rank 1, ...]`, each called under torchrun's environment.

    The ranks speak gloo to each other on the CPU.

    A rank that raises or dies has a Failure in place of its result.

    Args:
        work: a function of a module, so that another process finds it; its result is pickled.
        size: number of ranks.
        started: so many are really started, for a run in which some never come.
    """
    port = _free_port()
    children = []
    for rank in range(size if started is None else started):
        receiver, sender = CONTEXT.Pipe(duplex=False)
        environment = {
            **{"RANK": str(rank), "LOCAL_RANK": str(rank)},
            **{"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)},
            **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
        }
        process = CONTEXT.Process(target=_rank, args=(sender, environment, work, arguments))
        process.start()
        sender.close()
        children.append((process, receiver))
    return [_result(*child) for child in children]


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _rank(sender: Any, environment: dict[str, str], work: Callable, arguments: tuple) -> None:
    os.environ.update(environment)
    try:
        result = work(*arguments)
    except BaseException as error:  # noqa: BLE001 - the test looks at it
        result = Failure(type(error).__name__, str(error))
    sender.send_bytes(pickle.dumps(result))  # plain pickle: tensors by value


def _result(process: Any, receiver: Any) -> Any:
    with receiver:
        try:
            assert receiver.poll(60), "this rank hangs"
            return pickle.loads(receiver.recv_bytes())
        except EOFError:
            process.join()
            return Failure("exit", str(process.exitcode))
        finally:
            process.kill()
            process.join()
            process.close()
