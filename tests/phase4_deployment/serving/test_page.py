"""The page in a browser: a picture is dropped on it, and its boxes are seen."""

import base64
import re
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest

from phase4_deployment.package.serving import app
from tests.phase4_deployment.serving.running import Running, picture

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
BUDGET_MS = 6000  # of the page's own clock, which stands still while it waits for the server
GREEN_RGB = (0, 160, 80)
BOX = (100.0, 60.0, 300.0, 200.0)  # in a picture of 400 x 240

pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no Chromium or Chrome is installed: apt install chromium"
)

DROP = """
const bytes = Uint8Array.from(atob("{data}"), (letter) => letter.charCodeAt(0));
const carried = new DataTransfer();
carried.items.add(new File([bytes], "a.png", {{ type: "{kind}" }}));
document.dispatchEvent(new DragEvent("drop", {{ dataTransfer: carried, cancelable: true }}));
"""


@pytest.fixture
def drop(tmp_path, monkeypatch):
    """Lets the page drop a file on itself once it is loaded, as a hand would."""

    def install(data: bytes, kind: str) -> None:
        page = app.PAGE.read_text(encoding="utf-8")
        script = DROP.format(data=base64.b64encode(data).decode(), kind=kind)
        changed = tmp_path / "page.html"
        changed.write_text(page.replace("</script>", f"{script}</script>"), encoding="utf-8")
        monkeypatch.setattr(app, "PAGE", changed)

    return install


def green_picture() -> bytes:
    import io

    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", (400, 240), GREEN_RGB).save(out, "PNG")
    return out.getvalue()


def one_box(images):
    return [np.array([[*BOX, 0.876, 3.0], [0, 0, 20, 20, 0.5, 1.0]]) for _ in images]


def chromium(folder: Path, port: int, *options: str) -> str:
    """What a headless browser writes about the page, with a profile of its own."""
    command = [
        *(str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
        *("--no-first-run", "--disable-dev-shm-usage", f"--user-data-dir={folder / 'profile'}"),
        *(f"--virtual-time-budget={BUDGET_MS}", *options, f"http://127.0.0.1:{port}/"),
    ]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def body_of(dom: str) -> str:
    return dom[dom.index("<body") : dom.index("<script>")]


def test_a_dropped_picture_gets_boxes_in_a_picture_and_a_table(tmp_path, drop):
    drop(green_picture(), "image/png")
    with Running(one_box) as server:
        body = body_of(chromium(tmp_path, server.port, "--dump-dom"))
    assert '<p id="state" role="status" class="">2 objects in 400 × 240 pixels</p>' in body
    assert 'viewBox="0 0 400 240" ' in body or 'viewBox="0 0 400 240">' in body
    assert '<rect x="100" y="60" width="200" height="140"' in body
    assert 'aria-label="2 objects"' in body
    rows = re.findall(r"<tr>(<td>.*?)</tr>", body)
    assert rows[0] == "<td>car</td><td>0.876</td><td>100.0, 60.0</td><td>300.0, 200.0</td>"
    assert rows[1].startswith("<td>&lt;b&gt;Fuß&lt;/b&gt;</td>")  # text, and no markup
    assert "model.onnx on FakeProvider, objects from a confidence of 0.5" in body


@pytest.mark.parametrize(("width", "height"), [(1000, 800), (390, 900)])
def test_the_boxes_lie_where_they_are_in_the_picture(tmp_path, drop, width, height):
    drop(green_picture(), "image/png")
    target = tmp_path / "page.png"
    with Running(one_box) as server:
        size = f"--window-size={width},{height}"
        chromium(tmp_path, server.port, size, f"--screenshot={target}")
    shot = cv2.imread(str(target))
    green = np.abs(shot.astype(int) - GREEN_RGB[::-1]).max(axis=2) < 12
    rows, columns = np.nonzero(green)
    left, top = columns.min(), rows.min()
    scale = (columns.max() - left + 1) / 400
    assert scale == pytest.approx(1.0 if width > 500 else 350 / 400, abs=0.01)
    x1, y1, x2, y2 = (np.array(BOX) * scale).round().astype(int)
    for x, y in ((x1, (y1 + y2) // 2), (x2, (y1 + y2) // 2), ((x1 + x2) // 2, y2)):
        assert not green[top + y, left + x], (x, y)  # the line of the box
        assert green[top + y + 8, left + x - 8], (x, y)  # and beside it the picture
    assert (shot[:, width - 6 :] == shot[0, -1]).all()  # it does not scroll sideways


@pytest.mark.parametrize(
    ("data", "kind", "text"),
    [
        (b"no picture", "image/png", "400: it is neither a JPEG nor a PNG"),
        (picture(kind="GIF"), "image/gif", "415: the Content-Type is none of these"),
    ],
    ids=["damaged", "gif"],
)
def test_what_is_no_picture_is_told(tmp_path, drop, data, kind, text):
    drop(data, kind)
    with Running(one_box) as server:
        body = body_of(chromium(tmp_path, server.port, "--dump-dom"))
    assert f'<p id="state" role="status" class="bad">{text}' in body
    assert "<rect" not in body


def test_everything_has_a_name_and_the_keyboard_reaches_it():
    page = app.PAGE.read_text(encoding="utf-8")
    assert '<html lang="en">' in page
    assert '<label for="file">' in page
    assert '<input id="file" type="file"' in page
    assert "outline: none" not in page
    assert re.search(r'<img id="picture" alt="[^"]+"', page)
    assert re.search(r'<svg id="boxes" role="img" aria-label="[^"]+"', page)
    assert "<caption>" in page
    assert page.count('<th scope="col">') == 4
