"""The command on the address of a camera: its password is shown nowhere and kept nowhere."""

import json
import os
import signal
import sys
import threading
import time

import pytest

from phase3_tracking import video_detector
from phase3_tracking.live import display_window
from phase3_tracking.live.live_view import LiveView
from tests.phase3_tracking.live_viewers import ask
from tests.phase3_tracking.video_files import RedSquareModel, write_video
from tests.phase3_tracking.video_servers import Temper, http_server, silent_server

SECRETS = ("somebody", "pa55word", "confidential")


def with_secrets(url: str) -> str:
    return url.replace("//", "//somebody:pa55word@") + "?key=confidential"


def run(monkeypatch, *arguments, model: RedSquareModel | None = None) -> int:
    """`main` as it is when the words come from a shell."""
    backend = (model or RedSquareModel()).backend
    monkeypatch.setattr(video_detector, "load_backend", lambda *options: backend)
    words = [*map(str, arguments)]
    monkeypatch.setattr(sys, "argv", ["phase3_tracking/video_detector.py", *words])
    return video_detector.main(words)


class MadeUpWindow:
    """In the place of a DisplayWindow: keeps its title."""

    titles: list[str]

    def __init__(self, title: str):
        self.titles.append(title)

    def __enter__(self) -> "MadeUpWindow":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, _: object) -> bool:
        return True


def test_p3_22_no_password_on_the_live_page_or_in_a_file(tmp_path, monkeypatch, capsys):
    views, pages, titles = [], [], []
    enter = LiveView.__enter__
    monkeypatch.setattr(LiveView, "__enter__", lambda self: views.append(self) or enter(self))
    monkeypatch.setattr(MadeUpWindow, "titles", titles, raising=False)
    monkeypatch.setattr(display_window, "DisplayWindow", MadeUpWindow)

    def looked_at(number: int) -> None:
        if number == 3:
            pages.append(ask(views[0], "/")[1].decode() + ask(views[0], "/status.json")[1].decode())

    out, content = tmp_path / "out", write_video(tmp_path / "a.mp4", 6).read_bytes()
    with http_server(Temper(content)) as url:
        options = ("--output", out, "--live", "0", "--show")
        address = f"--input={with_secrets(url)}"
        assert run(monkeypatch, address, *options, model=RedSquareModel(looked_at)) == 0
    assert f"<h1>{url}</h1>" in pages[0]
    assert titles == [url]
    (report,) = list(out.glob("*_tracked.json"))
    command = json.loads(report.read_text(encoding="utf-8"))["command"]
    assert f"--input={url} " in command
    captured = capsys.readouterr()
    kept = {path.name: path.read_bytes().decode("latin-1") for path in out.iterdir()}
    shown = {"page": pages[0], "out": captured.out, "err": captured.err, **kept}
    told = {(name, one) for name, text in shown.items() for one in SECRETS if one in text + name}
    assert told == set()


@pytest.mark.parametrize(
    ("scheme", "sent", "status"),
    [("http", signal.SIGINT, 130), ("rtsp", signal.SIGINT, 130), ("http", signal.SIGTERM, 143)],
)
def test_a_signal_while_a_camera_is_connected_to(
    tmp_path, monkeypatch, capsys, scheme, sent, status
):
    """A server that takes the connection and says nothing is waited for 10 seconds."""
    interrupt = threading.Timer(0.5, os.kill, (os.getpid(), sent))
    with silent_server() as port:
        interrupt.start()
        begin = time.monotonic()
        address = f"{scheme}://127.0.0.1:{port}/live"
        assert run(monkeypatch, "--input", address, "--output", tmp_path / "out.mp4") == status
        assert time.monotonic() - begin < 6
    word = "interrupted" if sent == signal.SIGINT else "terminated"
    assert capsys.readouterr().err == f"{word}\n"
    assert list(tmp_path.iterdir()) == []
