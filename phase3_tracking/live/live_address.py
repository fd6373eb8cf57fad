"""Where a live view is served: `8000`, `:8000`, `localhost:8000`, `0.0.0.0:8000`, `[::1]:8000`."""

import argparse
import ipaddress
import re
from typing import NamedTuple

LOOPBACK = "127.0.0.1"  # without a host nobody but this machine can see the view
LAST_PORT = 65535
EXAMPLE = "write for instance 8000 or 127.0.0.1:8000"


class Address(NamedTuple):
    """A host name or IP address, and a TCP port; port 0 takes any that is free."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def address(text: str) -> Address:
    """The argparse type of `HOST:PORT`, `:PORT` or `PORT`; an IPv6 address stands in brackets.

    Raises:
        argparse.ArgumentTypeError: it is none of these.
    """
    host, separator, port = text.strip().rpartition(":")
    is_bracketed = host.startswith("[") and host.endswith("]")
    if not re.fullmatch(r"[0-9]+", port):
        raise argparse.ArgumentTypeError(f"{text!r} has no port number; {EXAMPLE}")
    if len(port) > len(str(LAST_PORT)) or int(port) > LAST_PORT:
        raise argparse.ArgumentTypeError(f"port {port} is not between 0 and {LAST_PORT}")
    if ":" in host and not is_bracketed:
        hint = f"write [{text}]:8000" if _is_ip_address(text) else EXAMPLE
        raise argparse.ArgumentTypeError(f"{text!r} is no HOST:PORT; {hint}")
    if is_bracketed:
        host = host[1:-1]
        if not (":" in host and _is_ip_address(host)):
            raise argparse.ArgumentTypeError(f"[{host}] is no IPv6 address; {EXAMPLE}")
    elif separator and host and not re.fullmatch(r"[A-Za-z0-9._-]+", host):
        raise argparse.ArgumentTypeError(f"{host!r} is no host name; {EXAMPLE}")
    return Address(host or LOOPBACK, int(port))


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server bound to `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _is_ip_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
