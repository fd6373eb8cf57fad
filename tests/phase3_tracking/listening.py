"""Which processes a process has started, and where they listen for others; from Linux's /proc."""

import contextlib
import os
import socket
from pathlib import Path

TCP_LISTEN = "0A"


def family_of(pid: int) -> set[int]:
    """A process, its children and theirs."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            parents[int(path.parent.name)] = int(fields[1])
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def listening(pids: set[int]) -> list[tuple[str, int]]:
    """Address and port of every TCP socket on which one of the processes listens."""
    inodes: set[str] = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            for link in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    inodes.add(os.readlink(link))
    found = []
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == TCP_LISTEN and f"socket:[{fields[9]}]" in inodes:
                address, _, port = fields[1].partition(":")
                found.append((_readable(address, family), int(port, 16)))
    return found


def _readable(address: str, family: socket.AddressFamily) -> str:
    """Of words of 32 bits, each in the byte order of this machine."""
    words = [bytes.fromhex(address[at : at + 8])[::-1] for at in range(0, len(address), 8)]
    return socket.inet_ntop(family, b"".join(words))
