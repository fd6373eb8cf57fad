"""Content-Security-Policy for pages that bring their own style and script and need nothing else."""

import base64
import hashlib
import re


def content_policy(page: str, images: str) -> str:
    """Lets the one style and the one script of a page run, and nothing from elsewhere.

    Args:
        page: HTML; what is put into it later must not touch the two.
        images: where pictures may come from, as `blob: data:`.
    """
    hashes = {}
    for tag in ("style", "script"):
        (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        hashes[tag] = f"'sha256-{digest}'"
    return (
        f"default-src 'none'; style-src {hashes['style']}; script-src {hashes['script']}; "
        f"img-src {images}; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
