"""A Chromium without a window that opens one address of our own, for `web_runtime.py`."""

import contextlib
import os
import shutil
import signal
import subprocess
from pathlib import Path

from common.cli import UserError

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless=new",
    "--disable-gpu",
    "--disable-dev-shm-usage",  # /dev/shm is small in containers
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--no-default-browser-check",
    "--no-proxy-server",
)
LAST_WORDS = 200


def find_browser(given: Path | None) -> Path:
    """`given`, or the first Chromium on the search path.

    Raises:
        UserError: there is none.
    """
    for name in NAMES if given is None else (str(given),):
        if found := shutil.which(name):
            return Path(found)
    if given is not None:
        raise UserError(given, "no such program", "check the path given with --browser")
    raise UserError("Chromium", "not found", "install it, or name Chrome with --browser")


class Chromium:
    """A browser process that ends with the `with` block.

    Args:
        browser: see `find_browser`.
        url: what it opens.
        folder: for its profile and what it says; made if absent.
        options: more of its command-line options.

    Attributes:
        stdout: file with what it wrote there.
    """

    def __init__(self, browser: Path, url: str, folder: Path, *options: str):
        folder.mkdir(parents=True, exist_ok=True)
        # Chromium refuses to run as root with its sandbox; it opens nothing but our own page
        is_root = hasattr(os, "geteuid") and os.geteuid() == 0
        sandbox = ["--no-sandbox"] if is_root else []
        profile = f"--user-data-dir={folder / 'profile'}"
        self.command = [str(browser), *FLAGS, *sandbox, profile, *options, url]
        self.stdout, self._stderr = folder / "stdout", folder / "stderr"

    def __enter__(self) -> "Chromium":
        with open(self.stdout, "wb") as stdout, open(self._stderr, "wb") as stderr:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,  # so that its own child processes can be ended with it
            )
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if hasattr(os, "killpg"):
                os.killpg(self.process.pid, signal.SIGKILL)
            else:
                self.process.kill()
        self.process.wait()

    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def last_words(self) -> str:
        """The last line of what it said, to tell why it ended."""
        lines = self._stderr.read_text(encoding="utf-8", errors="replace").split("\n")
        said = [line.strip() for line in lines if line.strip()]
        return said[-1][-LAST_WORDS:] if said else f"exit status {self.process.poll()}"
