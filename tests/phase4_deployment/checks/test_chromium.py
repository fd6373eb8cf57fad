"""Finding a browser, starting it and ending it."""

import os
import time
from pathlib import Path

import pytest

from common.cli import UserError
from phase4_deployment.checks.chromium import Chromium, find_browser
from tests.phase4_deployment.browsers import fake_browser


def program(folder: Path, name: str, text: str = "#!/bin/sh\n") -> Path:
    path = folder / name
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_the_first_one_on_the_search_path_is_taken(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="Chromium: not found – install it, or name"):
        find_browser(None)
    chrome = program(tmp_path, "google-chrome")
    assert find_browser(None) == chrome
    chromium = program(tmp_path, "chromium")
    assert find_browser(None) == chromium
    assert find_browser(chrome) == chrome
    assert find_browser(Path("google-chrome")) == chrome


@pytest.mark.parametrize("name", ["gone", "not executable"])
def test_a_browser_that_is_none(tmp_path, name):
    (tmp_path / "not executable").write_text("text")
    with pytest.raises(UserError, match="no such program – check the path given with --browser"):
        find_browser(tmp_path / name)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_it_and_its_own_processes_end_with_the_block(tmp_path):
    script = f'#!/bin/sh\nsleep 600 &\necho $! > "{tmp_path}/child"\nwait\n'
    browser = program(tmp_path, "browser", script)
    with Chromium(browser, "http://127.0.0.1:1/", tmp_path / "folder") as opened:
        deadline = time.monotonic() + 60
        while not (tmp_path / "child").is_file() or not (tmp_path / "child").read_text().strip():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        child = int((tmp_path / "child").read_text())
        assert not opened.has_ended()
        assert is_running(child)
    assert opened.has_ended()
    deadline = time.monotonic() + 60
    while is_running(child) and not _is_a_zombie(child):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _is_a_zombie(pid: int) -> bool:
    """Ended, with nobody who asks for its status, as in many containers."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def test_its_last_words_tell_why_it_ended(tmp_path):
    with Chromium(fake_browser(tmp_path, "ends"), "http://127.0.0.1:1/", tmp_path) as opened:
        opened.process.wait(60)
    assert opened.last_words() == "cannot open display"
    silent = program(tmp_path, "silent", "#!/bin/sh\nexit 5\n")
    with Chromium(silent, "http://127.0.0.1:1/", tmp_path) as opened:
        opened.process.wait(60)
    assert opened.last_words() == "exit status 5"


def test_only_root_goes_without_a_sandbox(tmp_path, monkeypatch):
    for user, expected in ((0, True), (1000, False)):
        monkeypatch.setattr(os, "geteuid", lambda user=user: user)
        command = Chromium(Path("chromium"), "http://127.0.0.1:1/", tmp_path).command
        assert ("--no-sandbox" in command) == expected
        assert command[-1] == "http://127.0.0.1:1/"
