"""HOST:PORT in every form, and one line for everything else."""

import argparse

import pytest

from common.cli import ArgumentParser
from phase3_tracking.live.live_address import Address, address, is_loopback


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("8000", "127.0.0.1", 8000),
        (":8000", "127.0.0.1", 8000),
        (" 0 ", "127.0.0.1", 0),
        ("65535", "127.0.0.1", 65535),
        ("0.0.0.0:80", "0.0.0.0", 80),
        ("localhost:9", "localhost", 9),
        ("my-box.local:9", "my-box.local", 9),
        ("[::1]:8000", "::1", 8000),
        ("[fe80::1%eth0]:8000", "fe80::1%eth0", 8000),
    ],
)
def test_addresses(text, host, port):
    assert address(text) == Address(host, port)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no port number"),
        (":", "no port number"),
        ("localhost", "no port number"),
        ("localhost:", "no port number"),
        ("localhost:http", "no port number"),
        ("-1", "no port number"),
        ("8000.5", "no port number"),
        ("८०००", "no port number"),
        ("[::1]", "no port number"),
        ("65536", "port 65536 is not between 0 and 65535"),
        ("1" * 5000, "is not between"),
        ("::1", r"write \[::1\]:8000"),
        ("::1:8000:x", "no port number"),
        ("a:b:8000", "no HOST:PORT"),
        ("[localhost]:8000", "no IPv6 address"),
        ("[127.0.0.1]:8000", "no IPv6 address"),
        ("[]:8000", "no IPv6 address"),
        ("http://localhost:8000", "no HOST:PORT"),
        ("a b:8000", "no host name"),
        ("a/b:8000", "no host name"),
    ],
)
def test_a_wrong_address_is_one_line(text, said):
    with pytest.raises(argparse.ArgumentTypeError, match=said):
        address(text)


def test_as_an_option(capsys):
    parser = ArgumentParser("")
    parser.add_argument("--live", type=address)
    assert parser.parse_args(["--live", "8000"]).live == ("127.0.0.1", 8000)
    with pytest.raises(SystemExit):
        parser.parse_args(["--live", "here"])
    message = capsys.readouterr().err
    assert message.startswith("error: --live: 'here' has no port number")
    assert message.count("\n") == 1


def test_an_address_is_written_as_it_is_read():
    for text in ("127.0.0.1:8000", "[::1]:80"):
        assert str(address(text)) == text


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost", "LOCALHOST"])
def test_loopback(host):
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "localhost.example.com", ""])
def test_no_loopback(host):
    assert not is_loopback(host)
