"""Servers of videos on this machine: HTTP in several tempers, and a small RTSP server."""

import contextlib
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import av
import numpy as np


@dataclass
class Temper:
    """How the HTTP server answers.

    Attributes:
        content: of every path.
        later: content of all answers after the first; None is the same.
        seekable: it tells the length and serves ranges.
        breaks: for each answer in turn, after how many bytes it closes the connection; later
            answers are whole.
        hangs: instead of going on after `breaks`, it keeps the connection and sends no more.
        refuses_after: answers from this number on are errors.
        requests: headers of ranges asked for.
    """

    content: bytes
    seekable: bool = True
    breaks: list[int] = field(default_factory=list)
    hangs: bool = False
    refuses_after: int | None = None
    later: bytes | None = None
    requests: list[str] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)


@contextlib.contextmanager
def http_server(temper: Temper) -> Iterator[str]:
    """The address of a server on a free port."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            _answer(self, temper)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/a%20folder/video"
    finally:
        temper.over.set()
        server.shutdown()
        thread.join()
        server.server_close()


def _answer(handler: BaseHTTPRequestHandler, temper: Temper) -> None:
    number = len(temper.requests)
    asked = handler.headers.get("Range", "")
    temper.requests.append(asked)
    if temper.refuses_after is not None and number >= temper.refuses_after:
        handler.send_error(503)
        return
    body = temper.content if temper.later is None or number == 0 else temper.later
    if temper.seekable:
        start = int(match[1]) if (match := re.match(r"bytes=(\d+)-", asked)) else 0
        body = body[start:]
        handler.send_response(206 if asked else 200)
        handler.send_header("Accept-Ranges", "bytes")
        handler.send_header("Content-Length", str(len(body)))
        if asked:
            span = f"bytes {start}-{len(temper.content) - 1}/{len(temper.content)}"
            handler.send_header("Content-Range", span)
    else:
        handler.send_response(200)
    handler.send_header("Content-Type", "application/octet-stream")
    handler.end_headers()
    limit = temper.breaks.pop(0) if temper.breaks else len(body)
    with contextlib.suppress(OSError):
        handler.wfile.write(body[:limit])
        handler.wfile.flush()
    if temper.hangs and limit < len(body):
        temper.over.wait(30)


@contextlib.contextmanager
def silent_server() -> Iterator[int]:
    """A port where connections are taken and nothing is ever said."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


# --- RTSP ---------------------------------------------------------------------------------------

RTP_CLOCK = 90_000


@contextlib.contextmanager
def rtsp_server(images: list[np.ndarray], folder: Path, sessions: list[int]) -> Iterator[str]:
    """A server of H.264 over TCP at 20 frames per second.

    Args:
        sessions: how many of the frames each connection gets in turn before it is closed. When
            none is left, connections are closed at once.
    """
    units = _access_units(images, folder)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        over = threading.Event()

        def serve() -> None:
            while not over.is_set():
                with contextlib.suppress(OSError):
                    connection, _ = server.accept()
                    with connection:
                        connection.settimeout(5)
                        if sessions:
                            _converse(connection, units[: sessions.pop(0)])

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"rtsp://user:word@127.0.0.1:{server.getsockname()[1]}/live"
        finally:
            over.set()
            thread.join()


def _access_units(images: list[np.ndarray], folder: Path) -> list[list[bytes]]:
    """The NAL units of every frame, each frame with its own headers."""
    from tests.phase3_tracking.made_videos import encode

    height, width = images[0].shape[:2]
    options = {"tune": "zerolatency", "g": "5", "threads": "1", "x264-params": "repeat-headers=1"}
    path = encode(folder / "live.h264", images=images, size=(width, height), options=options)
    with av.open(str(path)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    return [[unit for unit in re.split(b"\0\0\0?\1", packet) if unit] for packet in packets]


def _converse(connection: socket.socket, units: list[list[bytes]]) -> None:
    """Answers requests until PLAY, then sends the frames and closes."""
    waiting = b""
    while True:
        while b"\r\n\r\n" not in waiting:
            received = connection.recv(4096)
            if not received:
                return
            waiting += received
        request, waiting = waiting.split(b"\r\n\r\n", 1)
        method = request.split(b" ", 1)[0].decode()
        number = re.search(rb"CSeq: *(\d+)", request)
        head = f"RTSP/1.0 200 OK\r\nCSeq: {int(number[1]) if number else 0}\r\n"
        connection.sendall((head + _headers(method)).encode())
        if method == "PLAY":
            _send(connection, units)
            return


def _headers(method: str) -> str:
    if method == "OPTIONS":
        return "Public: OPTIONS, DESCRIBE, SETUP, PLAY\r\n\r\n"
    if method == "DESCRIBE":
        lines = ["v=0", "o=- 0 0 IN IP4 127.0.0.1", "s=live", "t=0 0", "m=video 0 RTP/AVP 96"]
        lines += ["a=rtpmap:96 H264/90000", "a=fmtp:96 packetization-mode=1", "a=framerate:20"]
        text = "".join(f"{line}\r\n" for line in [*lines, "a=control:track1"])
        return f"Content-Type: application/sdp\r\nContent-Length: {len(text)}\r\n\r\n{text}"
    if method == "SETUP":
        return "Session: 1\r\nTransport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n\r\n"
    return "Session: 1\r\n\r\n"


def _send(connection: socket.socket, units: list[list[bytes]]) -> None:
    sequence = 0
    for index, frame in enumerate(units):
        for position, unit in enumerate(frame):
            last = position == len(frame) - 1
            stamp = index * RTP_CLOCK // 20
            header = struct.pack(">BBHII", 0x80, (last << 7) | 96, sequence, stamp, 1)
            packet = header + unit
            connection.sendall(struct.pack(">cBH", b"$", 0, len(packet)) + packet)
            sequence += 1
        time.sleep(0.01)
