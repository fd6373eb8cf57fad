"""Where the tests find Chromium and onnxruntime-web, and what stands in for them."""

import sys
from pathlib import Path

import pytest

from common.cli import UserError
from phase4_deployment import web_page
from phase4_deployment.checks import chromium

FAKE = Path(__file__).with_name("fake_browser.py")


def why_not() -> str:
    """What is missing for a run in a browser, with the remedy; empty where nothing is."""
    try:
        web_page.find_runtime(None)
        chromium.find_browser(None)
    except UserError as error:
        return str(error)
    return ""


needs_a_browser = pytest.mark.skipif(bool(why_not()), reason=why_not())


def fake_browser(folder: Path, behaviour: str) -> Path:
    """A program that takes Chromium's options; see fake_browser.py."""
    program = folder / f"browser that {behaviour}"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{FAKE}" {behaviour} "$@"\n')
    program.chmod(0o755)
    return program


def fake_runtime(folder: Path) -> Path:
    """A folder with files named as onnxruntime-web's are."""
    runtime = folder / "onnxruntime-web" / "dist"
    runtime.mkdir(parents=True)
    for name in web_page.RUNTIME_FILES:
        (runtime / name).write_text(name)
    return runtime
