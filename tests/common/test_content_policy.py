"""The policy admits a page's own style and script, by their digests."""

import base64
import hashlib

import pytest

from common.content_policy import content_policy

PAGE = "<html><style>a {}</style>\n<script>\nrun()\n</script></html>"


def test_only_the_pages_own_style_and_script_are_admitted():
    style, script = (
        base64.b64encode(hashlib.sha256(text).digest()).decode() for text in (b"a {}", b"\nrun()\n")
    )
    assert content_policy(PAGE, "blob: data:").split("; ") == [
        "default-src 'none'",
        f"style-src 'sha256-{style}'",
        f"script-src 'sha256-{script}'",
        "img-src blob: data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]


@pytest.mark.parametrize("page", ["<style></style>", PAGE + "<script></script>"])
def test_a_page_with_another_number_of_them_is_refused(page):
    with pytest.raises(ValueError, match="values to unpack"):
        content_policy(page, "data:")
