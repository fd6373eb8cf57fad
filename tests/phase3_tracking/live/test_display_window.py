"""The window, with an OpenCV that only takes notes: no display is needed here."""

import subprocess
import sys
import types

import numpy as np
import pytest

from common.cli import UserError
from phase3_tracking.live import display_window
from phase3_tracking.live.display_window import DisplayWindow

FRAME = np.zeros((1080, 1920, 3), np.uint8)


class FakeCv2(types.ModuleType):
    """As much of cv2 as a window needs; `keys` are pressed one a frame."""

    WINDOW_NORMAL, WINDOW_KEEPRATIO, WINDOW_GUI_NORMAL = 0, 0, 16
    WND_PROP_VISIBLE = 4
    error = type("error", (Exception,), {})

    def __init__(self) -> None:
        super().__init__("cv2")
        self.calls: list[tuple] = []
        self.keys: list[int] = []
        self.visible = 1.0
        self.build = "  GUI:                           QT5"
        self.failing: set[str] = set()

    def _note(self, name: str, *args: object) -> None:
        self.calls.append((name, *args))
        if name in self.failing:
            raise self.error(f"OpenCV(5.0.0)\nerror: ({name})")

    def getBuildInformation(self) -> str:  # noqa: N802
        return f"General configuration\n{self.build}\n"

    def namedWindow(self, title: str, flags: int) -> None:  # noqa: N802
        self._note("namedWindow", title)

    def resizeWindow(self, title: str, width: int, height: int) -> None:  # noqa: N802
        self._note("resizeWindow", width, height)

    def getWindowProperty(self, title: str, which: int) -> float:  # noqa: N802
        assert which == self.WND_PROP_VISIBLE
        return self.visible

    def imshow(self, title: str, frame: np.ndarray) -> None:
        self._note("imshow", frame.shape)

    def waitKey(self, milliseconds: int) -> int:  # noqa: N802
        assert milliseconds > 0  # 0 waits for ever
        return self.keys.pop(0) if self.keys else -1

    def destroyWindow(self, title: str) -> None:  # noqa: N802
        self._note("destroyWindow", title)


@pytest.fixture
def cv2(monkeypatch):
    fake = FakeCv2()
    monkeypatch.setitem(sys.modules, "cv2", fake)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setattr(display_window, "_child_opens_a_window", lambda: True)
    return fake


def test_frames_are_shown_in_a_window_that_fits(cv2):
    with DisplayWindow("street.mp4") as window:
        assert window.show(FRAME)
        assert window.show(FRAME)
    assert cv2.calls == [
        ("namedWindow", "street.mp4"),
        ("resizeWindow", 1280, 720),
        ("imshow", FRAME.shape),
        ("imshow", FRAME.shape),
        ("destroyWindow", "street.mp4"),
    ]


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(480, 640, (640, 480)), (1920, 1080, (405, 720)), (1, 9000, (1280, 1)), (1, 1, (1, 1))],
)
def test_small_frames_keep_their_size_and_large_ones_their_shape(cv2, height, width, size):
    with DisplayWindow("a") as window:
        window.show(np.zeros((height, width, 3), np.uint8))
    assert cv2.calls[1] == ("resizeWindow", *size)


@pytest.mark.parametrize("key", [ord("q"), ord("Q"), 27, 0x100000 + ord("q")])
def test_q_and_esc_stop(cv2, key):
    cv2.keys = [-1, ord("x"), key]
    with DisplayWindow("a") as window:
        assert [window.show(FRAME) for _ in range(3)] == [True, True, False]


def test_closing_the_window_stops_and_does_not_open_it_again(cv2):
    with DisplayWindow("a") as window:
        assert window.show(FRAME)
        cv2.visible, cv2.failing = 0.0, {"destroyWindow"}  # OpenCV knows it no more
        shown = len(cv2.calls)
        assert not window.show(FRAME)
    assert cv2.calls[shown:] == [("destroyWindow", "a")]


def test_losing_the_display_stops_the_run_in_an_orderly_way(cv2, caplog):
    with DisplayWindow("a") as window:
        cv2.failing = {"imshow"}
        assert not window.show(FRAME)
    assert "The window is lost (OpenCV(5.0.0) error: (imshow))" in caplog.text


def test_the_window_is_closed_when_the_run_fails(cv2):
    with pytest.raises(RuntimeError, match="the run"), DisplayWindow("a"):
        raise RuntimeError("the run")
    assert cv2.calls[-1] == ("destroyWindow", "a")


@pytest.mark.parametrize(("title", "shown"), [("", "video"), (" a\nb ", "a b"), ("日本", "日本")])
def test_any_title(cv2, title, shown):
    with DisplayWindow(title):
        assert cv2.calls == [("namedWindow", shown)]


def refused() -> str:
    with pytest.raises(UserError) as error:
        DisplayWindow("a").__enter__()
    message = str(error.value)
    assert message.startswith("--show: ")
    assert "--live 8000" in message
    assert "\n" not in message
    return message


def test_without_a_display(cv2, monkeypatch):
    monkeypatch.setenv("DISPLAY", "")
    assert "there is no display" in refused()
    assert not cv2.calls


def test_wayland_is_a_display(cv2, monkeypatch):
    monkeypatch.delenv("DISPLAY")
    monkeypatch.setenv("WAYLAND_DISPLAY", "wayland-0")
    with DisplayWindow("a") as window:
        assert window.show(FRAME)


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_other_systems_have_a_desktop(cv2, monkeypatch, platform):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.delenv("DISPLAY")
    with DisplayWindow("a") as window:
        assert window.show(FRAME)


def test_a_headless_opencv(cv2):
    cv2.build = "  GUI:                           NONE"
    assert "headless build" in refused()
    assert not cv2.calls


def test_a_display_that_does_not_answer(cv2, monkeypatch):
    monkeypatch.setattr(display_window, "_child_opens_a_window", lambda: False)
    assert "no window opens on the display (DISPLAY=:0)" in refused()
    assert not cv2.calls


def test_a_window_that_does_not_open(cv2):
    cv2.failing = {"namedWindow"}
    assert "no window opens (OpenCV(5.0.0) error: (namedWindow))" in refused()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a display of X11 is asked for")
def test_a_stale_display_does_not_end_the_process(monkeypatch):
    """The real OpenCV: on a display that is not there, Qt aborts whoever opens a window."""
    monkeypatch.setenv("DISPLAY", "127.0.0.1:4242")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert not display_window._child_opens_a_window()


def test_a_trial_that_hangs_has_failed(monkeypatch):
    monkeypatch.setattr(display_window, "TRIAL", "import time; time.sleep(60)")
    monkeypatch.setattr(display_window, "TRIAL_S", 0.2)
    assert not display_window._child_opens_a_window()


def test_a_trial_that_succeeds(monkeypatch):
    monkeypatch.setattr(display_window, "TRIAL", "")
    assert display_window._child_opens_a_window()


def test_nothing_is_loaded_before_a_window_is_wanted():
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); "
        "import phase3_tracking.live.display_window, phase3_tracking.live.live_address; "
        "sys.exit('cv2' in sys.modules or 'torch' in sys.modules)"
    )
    root = str(display_window.__file__).rsplit("phase3_tracking", 1)[0]
    assert subprocess.run([sys.executable, "-c", code, root]).returncode == 0
