"""The live page in a browser: what a person sees, at the width of a desktop and of a phone."""

import re
import shutil
import subprocess
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest

from phase3_tracking.live import live_server
from phase3_tracking.live.live_view import LiveView

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
LOAD_MS = 8000
ORANGE_BGR = (0, 140, 255)

pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no Chromium or Chrome is installed: apt install chromium"
)

COUNTERS = {
    "fps": 24.93,
    "frame": 1234,
    "frames_total": 5000,
    "objects": 3,
    "tracks": 17,
    "class_counts": {"<script>document.title = 'broken'</script>": 9, "<b>bold</b>": 8, "车": 1},
    "line_counts": {"door": {"in": 4, "out": 2}},
    "zone_counts": {"x" * 120: 1},
    "dropped_frames": 0,
    "time_left": None,
}


class Publisher:
    """Context manager: publishes an orange frame again and again until the block ends."""

    def __init__(self, view: LiveView):
        self._view, self._end = view, threading.Event()
        self._thread = threading.Thread(target=self._publish)

    def _publish(self) -> None:
        frame = np.full((432, 768, 3), ORANGE_BGR, np.uint8)
        while not self._end.wait(0.05):
            self._view.publish(frame, COUNTERS)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()


def chromium(folder: Path, url: str, *options: str) -> str:
    """What a headless browser writes about a page, with a profile of its own."""
    command = [
        *(str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
        *("--no-first-run", "--disable-dev-shm-usage", f"--user-data-dir={folder / 'profile'}"),
        *(f"--timeout={LOAD_MS}", *options, url),
    ]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def screenshot(folder: Path, url: str, width: int, height: int) -> np.ndarray:
    target = folder / "page.png"
    chromium(folder, url, f"--window-size={width},{height}", f"--screenshot={target}")
    return cv2.imread(str(target))


def without_tags(page: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", page).split())


@pytest.fixture(scope="module")
def dom(tmp_path_factory) -> str:
    """The page as its script left it. It is written when loaded, so perhaps before its counters."""
    folder = tmp_path_factory.mktemp("dom")
    with LiveView("127.0.0.1", 0, title="street & <i>yard</i>.mp4") as view, Publisher(view):
        for _ in range(5):
            page = chromium(folder, view.url, "--dump-dom")
            if "Tracks so far" in page[: page.index("<script>")]:
                break
    return page


def test_the_counters_are_there(dom):
    body = without_tags(dom[dom.index("<body") : dom.index("<script>")])
    assert "Live" in body
    for text in ("FPS 24.9", "Frame 1,234 of 5,000", "Objects now 3", "Tracks so far 17"):
        assert text in body
    for text in ("Dropped frames 0", "Time left –", "Lines door in 4 · out 2", "Zones"):
        assert text in body


def test_names_are_text_and_no_markup(dom):
    assert "<title>street &amp; &lt;i&gt;yard&lt;/i&gt;.mp4 – live view</title>" in dom
    assert "&lt;script&gt;document.title = 'broken'&lt;/script&gt;" in dom
    assert "&lt;b&gt;bold&lt;/b&gt;" in dom
    assert dom.count("<script>") == 1
    assert "<b>" not in dom


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 1400)])
def test_the_stream_is_seen_and_nothing_is_cut_off(tmp_path, width, height):
    with LiveView("127.0.0.1", 0) as view, Publisher(view):
        picture = screenshot(tmp_path, view.url, width, height)
    assert picture.shape[:2] == (height, width)
    orange = (np.abs(picture.astype(int) - ORANGE_BGR).max(axis=2) < 12).sum()
    shown = 940 * 940 * 432 / 768 if width > 800 else 390 * 390 * 432 / 768
    assert orange == pytest.approx(shown, rel=0.03)
    # Text and tables keep off the right border, so the page does not scroll sideways.
    assert (picture[-600:, width - 10 :] == picture[-1, -1]).all()


def test_the_stream_is_seen_without_javascript(tmp_path, monkeypatch):
    """A browser that runs no script is one that was given none."""
    page = live_server.PAGE.read_text(encoding="utf-8")
    plain = tmp_path / "live_page.html"
    plain.write_text(re.sub(r"<script>.*?</script>", "<script></script>", page, flags=re.DOTALL))
    monkeypatch.setattr(live_server, "PAGE", plain)
    with LiveView("127.0.0.1", 0) as view, Publisher(view):
        picture = screenshot(tmp_path, view.url, 1280, 800)
    orange = (np.abs(picture.astype(int) - ORANGE_BGR).max(axis=2) < 12).sum()
    assert orange > 400_000


def test_a_run_without_a_frame_yet_says_so(tmp_path):
    with LiveView("127.0.0.1", 0) as view:
        threading.Timer(3, view._frames.close).start()  # else the browser goes on loading
        dom = chromium(tmp_path, view.url, "--dump-dom")
    assert "Waiting for the first frame" in dom
