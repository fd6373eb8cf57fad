"""Reading all images: in parallel, only those that changed, and stopped at once."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common import artifacts, coco, paths
from phase1_training import image_checks
from phase1_training.image_checks import Picture, read_pictures


def write(folder: Path, count: int = 6) -> list[Path]:
    folder.mkdir()
    files = [folder / f"{number}.png" for number in range(count)]
    for number, file in enumerate(files):
        pixels = np.random.default_rng(number).integers(0, 255, (20 + number, 30, 3), np.uint8)
        Image.fromarray(pixels).save(file)
    return files


def read(files, cache=None, workers=0):
    return read_pictures(files, workers=workers, cache=cache, label="images")


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """The names of the files that are decoded, in order."""
    names: list[str] = []
    original = coco.read_image

    def counting(path, *arguments):
        names.append(path.name)
        return original(path, *arguments)

    monkeypatch.setattr(coco, "read_image", counting)
    return names


def test_the_number_of_threads_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(image_checks, "CHUNK", 2)
    files = write(tmp_path / "images")
    files[3].write_bytes(b"")
    alone = read(files)
    assert alone == read(files, workers=3)
    assert isinstance(alone[3], str)
    sizes = [(p.width, p.height) for p in alone if isinstance(p, Picture)]
    assert sizes == [(30, 20 + number) for number in (0, 1, 2, 4, 5)]


def test_only_changed_files_are_read_again(tmp_path, decoded):
    files, cache = write(tmp_path / "images"), tmp_path / "out" / "cache.json"
    first = read(files, cache)
    assert len(decoded) == 6
    decoded.clear()
    assert read(files, cache) == first
    assert decoded == []
    Image.new("RGB", (9, 9)).save(files[2])
    os.utime(files[4], ns=(1, 1))
    (tmp_path / "images" / "1.png").unlink()
    again = read(files, cache)
    assert decoded == ["1.png", "2.png", "4.png"]
    assert again[4] == first[4]
    assert again[2].width == 9
    assert "no such image" in again[1]
    assert str(tmp_path) not in cache.read_text()  # it moves along with the data


def test_a_failure_is_not_remembered(tmp_path, decoded):
    files, cache = write(tmp_path / "images", 1), tmp_path / "cache.json"
    whole, status = files[0].read_bytes(), files[0].stat()
    files[0].write_bytes(bytes(len(whole)))
    os.utime(files[0], ns=(status.st_atime_ns, status.st_mtime_ns))
    assert isinstance(read(files, cache)[0], str)
    files[0].write_bytes(whole)
    os.utime(files[0], ns=(status.st_atime_ns, status.st_mtime_ns))
    assert isinstance(read(files, cache)[0], Picture)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"images": 3}', b'{"images": {"images/0.png": [1]}}',
     b'{"images": {"images/0.png": [1, 2, "x", 4, 5, 6]}}'],
)  # fmt: skip
def test_a_damaged_cache_is_no_cache(tmp_path, decoded, content):
    files, cache = write(tmp_path / "images", 2), tmp_path / "cache.json"
    cache.write_bytes(content)
    read(files, cache)
    assert len(decoded) == 2
    assert artifacts.read_json(cache)["images"].keys() == {"images/0.png", "images/1.png"}


def test_two_data_sets_share_a_cache(tmp_path, decoded):
    cache = tmp_path / "cache.json"
    first, second = write(tmp_path / "one", 2), write(tmp_path / "two", 2)
    read(first, cache)
    read(second, cache)
    decoded.clear()
    read(first + second, cache)
    assert decoded == []


def test_the_hash_is_that_of_the_upright_pixels(tmp_path):
    (file,) = write(tmp_path / "images", 1)
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(file) as picture:
        picture.save(tmp_path / "same.bmp")
        picture.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    plain, same, turned = read([file, tmp_path / "same.bmp", tmp_path / "turned.png"])
    assert plain == same
    assert (turned.digest, turned.width, turned.height) == (plain.digest, 30, 20)
    assert (turned.orientation, turned.stored_size) == (6, (20, 30))


SLOW = """
import sys, time
from pathlib import Path
from common import coco
from phase1_training import image_checks
original, count = coco.read_image, 0
def slow(path):
    global count
    count += 1
    if count > 3:
        time.sleep(1)  # by now the first three have been taken note of, on a busy machine too
        print("reading", flush=True)
        time.sleep(1)
    return original(path)
coco.read_image = slow
files = [Path(sys.argv[1])] * 200
image_checks.read_pictures(files, workers=1, cache=Path(sys.argv[2]), label="x")
"""


def test_an_interrupt_ends_it_at_once_and_keeps_what_was_read(tmp_path):
    (file,) = write(tmp_path / "images", 1)
    cache = tmp_path / "cache.json"
    with subprocess.Popen(
        [sys.executable, "-c", SLOW, str(file), str(cache)],
        cwd=paths.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as child:
        assert child.stdout.readline() == "reading\n"
        start = time.monotonic()
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=30)
        assert time.monotonic() - start < 20  # of the 197 seconds that were left
    assert "KeyboardInterrupt" in errors
    assert list(json.loads(cache.read_text())["images"]) == ["images/0.png"]
