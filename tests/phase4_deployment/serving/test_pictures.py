"""Bodies become the pixels that detect.py reads from the same file, or a refusal."""

import io
import struct
import tracemalloc
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from common.coco import read_image
from phase4_deployment.package.serving import pictures
from phase4_deployment.package.serving.pictures import check_type, decoded
from phase4_deployment.package.serving.refusal import RefusedError
from tests.phase4_deployment.serving.running import picture
from tests.random_detectors import random_scene

ALL = 10_000_000
BOUNDARY = "multipart/form-data; boundary=X"


def scene(mode: str) -> Image.Image:
    rgb = random_scene(np.random.default_rng(0), 30, 40)
    if mode == "I;16":
        return Image.fromarray(rgb[..., 0].astype(np.uint16) * 257)
    return Image.fromarray(rgb).convert(mode)


def saved(image: Image.Image, kind: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def png_that_claims(width: int, height: int) -> bytes:
    """A PNG whose header promises a size, with next to nothing behind it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = (
        chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    )
    return b"\x89PNG\r\n\x1a\n" + data


def form(*parts: tuple[str, bytes], end: bytes = b"--X--\r\n") -> bytes:
    return (
        b"".join(
            f"--X\r\nContent-Disposition: form-data; {what}\r\n\r\n".encode() + data + b"\r\n"
            for what, data in parts
        )
        + end
    )


def refused(content_type: str, body: bytes, max_pixels: int = ALL) -> RefusedError:
    with pytest.raises(RefusedError) as info:
        decoded(content_type, body, max_pixels)
    return info.value


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        *(("JPEG", mode) for mode in ("RGB", "L", "CMYK")),
        *(("PNG", mode) for mode in ("RGB", "L", "RGBA", "P", "1", "I;16")),
    ],
)
def test_the_pixels_are_those_of_a_file(tmp_path, kind, mode):
    data = saved(scene(mode), kind)
    (tmp_path / "file").write_bytes(data)
    expected = cv2.cvtColor(read_image(tmp_path / "file"), cv2.COLOR_RGB2BGR)
    np.testing.assert_array_equal(decoded("image/png", data, ALL), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_orientation_is_applied_as_it_is_to_files(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(scene("RGB"), "JPEG", exif=exif)
    (tmp_path / "file.jpg").write_bytes(data)
    found = decoded("image/jpeg", data, ALL)
    assert found.shape == ((30, 40, 3) if orientation < 5 else (40, 30, 3))
    np.testing.assert_array_equal(found[..., ::-1], read_image(tmp_path / "file.jpg"))


@pytest.mark.parametrize(
    ("body", "status", "what"),
    [
        (b"", 400, "there is nothing in it"),
        (b"hello", 400, "neither a JPEG nor a PNG"),
        (b"\xff\xd8\xff", 400, "neither a JPEG nor a PNG"),
        (picture(kind="GIF"), 400, "neither a JPEG nor a PNG"),
        (picture(200, 200)[:-300], 400, "cannot be decoded"),
        (png_that_claims(100, 100), 400, "cannot be decoded"),
        (png_that_claims(4000, 4000), 413, "4000x4000 is more than 10 megapixels"),
        (png_that_claims(20000, 20000), 413, "more than 10 megapixels"),
        (png_that_claims(2**31 - 1, 2**31 - 1), 413, "more than 10 megapixels"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bodies_without_a_picture(body, status, what):
    error = refused("image/png", body)
    assert error.status == status
    assert what in str(error)
    assert "\n" not in str(error)


def test_a_picture_that_is_too_large_is_never_decoded(monkeypatch):
    monkeypatch.setattr(pictures, "rgb_pixels", None)  # whoever calls it fails otherwise
    assert refused("image/jpeg", picture(101, 100), 10_000).status == 413
    monkeypatch.undo()
    assert decoded("image/jpeg", picture(100, 100), 10_000).shape == (100, 100, 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_damaged_picture_is_decoded_or_refused(kind):
    data, rng = saved(scene("RGB"), kind), np.random.default_rng(0)
    for _ in range(150):
        broken = bytearray(data)
        for position in rng.integers(0, len(data), 3):
            broken[position] = rng.integers(256)
        try:
            assert decoded("image/png", bytes(broken), ALL).dtype == np.uint8
        except RefusedError as error:
            assert error.status in (400, 413)  # noqa: PT017 - which error is not known before


# --- forms and types --------------------------------------------------------------------------


def test_a_form_gives_the_same_pixels():
    data = saved(scene("RGB"), "PNG")
    body = form(('name="note"', b"x" * 100), ('name="any"; filename="../../a.png"', data))
    found = decoded(BOUNDARY, body, ALL)
    np.testing.assert_array_equal(found, decoded("image/png", data, ALL))


def test_the_file_of_a_form_is_the_only_copy():
    """What bodies.Memory leaves room for."""
    size = 4 << 20
    body = form(('name="file"; filename="a.png"', b"\0" * size))
    tracemalloc.start()
    try:
        assert len(pictures._file_of(BOUNDARY, body)) == size
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1.3 * size


FILE = ('name="a"; filename="a.jpg"', picture())


@pytest.mark.parametrize(
    ("content_type", "body", "what"),
    [
        (BOUNDARY, form(), "the form has 0 files"),
        (BOUNDARY, form(('name="a"', picture())), "the form has 0 files"),
        (BOUNDARY, form(FILE, FILE), "the form has 2 files"),
        (BOUNDARY, form(FILE, end=b"")[:-2], "the form has 0 files"),
        (BOUNDARY, form(('name="a"; filename="a"', b"")), "there is nothing in it"),
        (BOUNDARY, b"", "the form has 0 files"),
        (BOUNDARY, b"no form at all", "the form cannot be read"),
        ("multipart/form-data", form(FILE), "the form cannot be read"),
        ("multipart/form-data; boundary=Straße", form(FILE), "the form cannot be read"),
    ],
)
def test_forms_without_one_picture(content_type, body, what):
    error = refused(content_type, body)
    assert (error.status, what in str(error)) == (400, True), str(error)


@pytest.mark.parametrize("known", ["image/jpeg", "IMAGE/PNG; q=1", BOUNDARY])
def test_types_that_are_taken(known):
    check_type(known)


@pytest.mark.parametrize("other", ["", "application/json", "image/gif", "text/image/jpeg", "image"])
def test_types_that_are_not(other):
    with pytest.raises(RefusedError, match="give one: image/jpeg, image/png") as info:
        check_type(other)
    assert info.value.status == 415
