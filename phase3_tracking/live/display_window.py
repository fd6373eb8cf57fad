"""Watching a run in a window of this machine's desktop.

with DisplayWindow("street.mp4") as window:
    for frame in ...:
        if not window.show(frame):
            break  # q, Esc, or the window was closed
"""

import os
import re
import subprocess
import sys
from types import TracebackType

import numpy as np

from common.cli import UserError, log

LARGEST_PX = (1280, 720)  # of a window when it opens; it can be enlarged
QUIT_KEYS = (ord("q"), ord("Q"), 27)  # 27 is Esc
KEY_WAIT_MS = 1  # the window is drawn, and keys are read, while OpenCV waits
TRIAL_S = 30.0
# Qt ends the whole process when it cannot reach the display, so a child tries first.
TRIAL = "import cv2; cv2.namedWindow('trial'); cv2.destroyAllWindows()"
REMEDY = "watch in a browser instead: --live 8000"


class DisplayWindow:
    """Context manager for a window; to be used in the main thread, as desktops demand.

    Args:
        title: of the window, for instance the name of the video.

    Raises:
        UserError: at the start of the block: there is no display, or OpenCV cannot show windows.
    """

    def __init__(self, title: str):
        self._title = " ".join(title.split()) or "video"
        self._is_open = False

    def __enter__(self) -> "DisplayWindow":
        import cv2

        _check_opencv()
        _check_display()
        # A window that keeps the picture's shape and has no toolbar
        flags = cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO | cv2.WINDOW_GUI_NORMAL
        try:
            cv2.namedWindow(self._title, flags)
        except cv2.error as error:
            raise UserError("--show", f"no window opens ({_line(error)})", REMEDY) from None
        return self

    def show(self, frame_bgr: np.ndarray) -> bool:
        """Shows a uint8 (H, W, 3) frame and reads the keyboard, in about a millisecond.

        Returns:
            False when the run is to stop: q or Esc was pressed, or the window was closed. Also when
            the display is lost, with a warning, so that what was done so far can be saved.
        """
        import cv2

        try:
            if not self._is_open:
                cv2.resizeWindow(self._title, *_window_size(frame_bgr))
            elif cv2.getWindowProperty(self._title, cv2.WND_PROP_VISIBLE) < 1:
                return False  # imshow would open it again
            cv2.imshow(self._title, frame_bgr)
            self._is_open = True
            return cv2.waitKey(KEY_WAIT_MS) & 0xFF not in QUIT_KEYS
        except cv2.error as error:
            log.warning("The window is lost (%s); stopping", _line(error))
            return False

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        import cv2

        try:
            cv2.destroyWindow(self._title)
        except cv2.error:  # the person has closed it already
            log.debug("the window was closed before")


def _window_size(frame_bgr: np.ndarray) -> tuple[int, int]:
    """Width and height that fit into LARGEST_PX."""
    height, width = frame_bgr.shape[:2]
    scale = min(1.0, LARGEST_PX[0] / width, LARGEST_PX[1] / height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _check_opencv() -> None:
    import cv2

    if re.search(r"GUI:\s*NONE", cv2.getBuildInformation()):
        remedy = f"{REMEDY}, or install opencv-python in place of opencv-python-headless"
        raise UserError("--show", "this OpenCV has no windows (headless build)", remedy)


def _check_display() -> None:
    """On Linux; Windows and macOS always have a desktop."""
    if not sys.platform.startswith("linux"):
        return
    names = [name for name in ("DISPLAY", "WAYLAND_DISPLAY") if os.environ.get(name)]
    if not names:
        raise UserError("--show", "there is no display", REMEDY)
    if not _child_opens_a_window():
        given = " and ".join(f"{name}={os.environ[name]}" for name in names)
        raise UserError("--show", f"no window opens on the display ({given})", REMEDY)


def _child_opens_a_window() -> bool:
    try:
        done = subprocess.run(
            [sys.executable, "-c", TRIAL],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=TRIAL_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
