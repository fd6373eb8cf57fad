"""The folder that shows a detector in the browser."""

import html
import re
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from common.cli import UserError
from common.onnx_detector import OnnxDetector
from phase4_deployment import web_page
from phase4_deployment.checks import chromium, web_runtime
from tests.phase4_deployment.browsers import fake_runtime, needs_a_browser
from tests.random_detectors import random_scene

FILES = {"index.html", "page.js", "detector.js", "model.onnx"} | {
    f"ort/{name}" for name in web_page.RUNTIME_FILES
}


def files_of(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def page(exported, tmp_path, *more: str) -> int:
    options = ["--onnx-path", str(exported.onnx_path), "--output", str(tmp_path / "site")]
    return web_page.main([*options, "--web-runtime", str(tmp_path / "onnxruntime-web"), *more])


def test_the_folder_holds_all_that_the_page_needs(exported, tmp_path, capsys):
    runtime = fake_runtime(tmp_path)
    (runtime.parent / "package.json").write_text('{"version": "1.2.3"}')
    assert page(exported, tmp_path) == 0
    site = tmp_path / "site"
    assert files_of(site) == FILES
    assert (site / "model.onnx").read_bytes() == exported.onnx_path.read_bytes()
    out = capsys.readouterr().out
    assert "onnxruntime-web 1.2.3" in out
    assert f"python -m http.server --bind 127.0.0.1 --directory {site} 8000" in out
    (site / "detector.js").unlink()  # as a killed process leaves it
    assert page(exported, tmp_path) == 0  # its own folder is written anew
    assert files_of(site) == FILES


def test_everything_the_page_loads_is_in_the_folder():
    """No other server is asked for anything: it works without a network."""
    for name in ("index.html", "page.js", "detector.js", "check.html"):
        text = (web_page.PAGE / name).read_text(encoding="utf-8")
        assert not re.search(r"https?://", text)
        for target in re.findall(r'(?:from|src=|import\()\s*"\.?/?([\w./-]+)"', text):
            assert target in FILES, f"{name}: {target}"


def test_a_folder_of_somebody_else_stays(exported, tmp_path, capsys):
    fake_runtime(tmp_path)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("mine")
    assert page(exported, tmp_path) == 2
    assert "holds something else" in capsys.readouterr().err
    assert files_of(tmp_path / "site") == {"index.html"}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--onnx-path", "gone.onnx"], "no such file"),
        (["--device", "cuda"], "not supported in the page"),
        (["--web-runtime", "gone"], "npm install --prefix"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(exported, tmp_path, capsys, more, message):
    fake_runtime(tmp_path)
    assert page(exported, tmp_path, *more) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert message in error
    assert "\n" not in error
    assert not (tmp_path / "site").exists()


@pytest.mark.parametrize("below", ["", "..", "../.."])
def test_the_runtime_is_found_from_each_folder_that_npm_makes(tmp_path, below):
    runtime = fake_runtime(tmp_path / "node_modules")
    start = {"": runtime, "..": runtime.parent, "../..": tmp_path}[below]
    assert web_page.find_runtime(start) == runtime
    (runtime / web_page.RUNTIME_FILES[-1]).unlink()
    with pytest.raises(UserError, match=re.escape(web_page.install_command())):
        web_page.find_runtime(start)


def test_without_a_folder_the_cache_is_looked_at(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(UserError, match="onnxruntime-web: no"):
        web_page.find_runtime(None)
    runtime = fake_runtime(tmp_path / "onnxruntime-web" / "node_modules")
    assert web_page.find_runtime(None) == runtime
    assert f'"{tmp_path / "onnxruntime-web"}"' in web_page.install_command()


@pytest.mark.parametrize("content", [None, "", "{}", "[]", "text"])
def test_a_version_that_cannot_be_read(tmp_path, content):
    runtime = fake_runtime(tmp_path)
    if content is not None:
        (runtime.parent / "package.json").write_text(content)
    assert web_page.runtime_version(runtime) == "of unknown version"


def dom_of(site: Path, query: str, folder: Path) -> str:
    """The page as it stands when it has nothing more to do."""
    options = ("--dump-dom", "--virtual-time-budget=100000")
    with web_runtime.served(site) as (port, _):
        url = f"http://127.0.0.1:{port}/{query}"
        with chromium.Chromium(chromium.find_browser(None), url, folder, *options) as opened:
            deadline = time.monotonic() + 120
            while not opened.has_ended() and time.monotonic() < deadline:
                time.sleep(0.1)
    return opened.stdout.read_text(encoding="utf-8")


@needs_a_browser
def test_a_person_sees_what_the_detector_finds(exported, tmp_path):
    site, picture = tmp_path / "site", random_scene(np.random.default_rng(4), 120, 160)
    web_page.write_page(site, exported.onnx_path, web_page.find_runtime(None))
    cv2.imwrite(str(site / "picture.png"), picture[..., ::-1])
    dom = dom_of(site, "?picture=picture.png", tmp_path)
    body = re.search(r'<tbody id="found">(.*?)</tbody>', dom, re.DOTALL)
    rows = [
        [html.unescape(cell) for cell in re.findall(r"<td>(.*?)</td>", row)]
        for row in re.findall(r"<tr>(.*?)</tr>", body[1])
    ]
    (found,) = OnnxDetector(exported.onnx_path, "cpu", threads=1)([picture])
    shown = found.scores >= 0.5
    assert shown.sum() >= 1
    assert [row[0] for row in rows] == [n for n, s in zip(found.names, shown, strict=True) if s]
    numbers = np.array([[float(value) for value in row[1:]] for row in rows])
    np.testing.assert_allclose(numbers[:, 0], found.scores[shown], atol=1e-3)
    np.testing.assert_allclose(numbers[:, 1:], found.boxes_xyxy[shown], atol=0.51)
    assert "160 × 120 pixels" in dom
    assert ", ".join(exported.loaded.class_names) in html.unescape(dom)


@needs_a_browser
@pytest.mark.parametrize("damage", ["detector", "picture"])
def test_the_page_says_what_does_not_work(exported, tmp_path, damage):
    site = tmp_path / "site"
    web_page.write_page(site, exported.onnx_path, web_page.find_runtime(None))
    damaged = {"detector": "model.onnx", "picture": "picture.png"}[damage]
    (site / damaged).write_text("neither a model nor a picture")
    dom = dom_of(site, "?picture=picture.png", tmp_path)
    state = re.search(r'<p id="state"[^>]*>(.*?)</p>', dom)[1]
    expected = {"detector": "The detector cannot be loaded: ", "picture": "That did not work: "}
    assert state.startswith(expected[damage])
