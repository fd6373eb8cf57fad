"""From the body of a request to pixels, as detect.py reads a picture file."""

import io
from typing import TYPE_CHECKING, Any

from common.coco import rgb_pixels
from phase4_deployment.package.serving.refusal import RefusedError

if TYPE_CHECKING:
    import numpy as np

FORMATS = ("JPEG", "PNG")
PICTURE_TYPES = ("image/jpeg", "image/png")
FORM_TYPE = "multipart/form-data"
MEGAPIXEL = 1_000_000
CHUNK = 64 * 1024  # bytes of a form that are parsed at a time
SEND = "send a JPEG or PNG picture"


def check_type(content_type: str) -> None:
    """Raises RefusedError (415) unless a body of this type may hold a picture."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind not in (*PICTURE_TYPES, FORM_TYPE):
        types = ", ".join((*PICTURE_TYPES, FORM_TYPE))
        raise RefusedError(415, "the Content-Type is none of these", f"give one: {types}")


def decoded(content_type: str, body: bytes, max_pixels: int) -> "np.ndarray":
    """The picture in a body, uint8 BGR (H, W, 3), upright by its EXIF orientation.

    Args:
        content_type: of the body, see `check_type`.
        max_pixels: a picture that says it has more is not decoded.

    Raises:
        RefusedError: 400 for a body without a picture that can be decoded, 413 for one too large.
    """
    import cv2

    is_form = content_type.strip().lower().startswith(FORM_TYPE)
    rgb = _pixels(_file_of(content_type, body) if is_form else body, max_pixels)
    return cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)


def _file_of(content_type: str, body: bytes) -> bytes:
    """The one file of a form; other fields are nobody's concern.

    Raises:
        RefusedError: 400, the form is damaged or has none or several.
    """
    from python_multipart.exceptions import FormParserError
    from python_multipart.multipart import create_form_parser

    files: list[Any] = []
    in_memory = {"MAX_MEMORY_FILE_SIZE": len(body)}
    try:
        parser = create_form_parser(
            {"Content-Type": content_type.encode("latin-1")},
            lambda field: None,
            files.append,
            config=in_memory,
        )
        for start in range(0, len(body), CHUNK):  # the parser copies what it is given
            parser.write(body[start : start + CHUNK])
        parser.finalize()
    except (FormParserError, ValueError):
        raise RefusedError(400, "the form cannot be read", SEND) from None
    if len(files) != 1:
        raise RefusedError(400, f"the form has {len(files)} files", "send one picture at a time")
    return files[0].file_object.getvalue()  # in memory, where this copies nothing


def _pixels(data: bytes, max_pixels: int) -> "np.ndarray":
    from PIL import Image, ImageOps, UnidentifiedImageError

    if not data:
        raise RefusedError(400, "there is nothing in it", SEND)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:  # reads the header only
            width, height = image.size
            if width * height > max_pixels:
                raise _too_large(f"{width}x{height}", max_pixels)
            return rgb_pixels(ImageOps.exif_transpose(image))
    except (RefusedError, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise _too_large("this picture", max_pixels) from None
    except UnidentifiedImageError:
        raise RefusedError(400, "it is neither a JPEG nor a PNG, or damaged", SEND) from None
    except Exception as error:  # noqa: BLE001 - damaged files raise a dozen kinds
        raise RefusedError(400, f"cannot be decoded ({str(error)[:200]})", SEND) from None


def _too_large(size: str, max_pixels: int) -> RefusedError:
    what = f"{size} is more than {max_pixels / MEGAPIXEL:g} megapixels"
    return RefusedError(413, what, "send it smaller")
