"""No secret of an address is shown, and nothing else is changed."""

import pytest

from common.addresses import text_without_secrets, without_secrets, word_without_secrets


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("rtsp://user:word@host:554/live", "rtsp://host:554/live"),
        ("https://host/a.mp4?token=secret#part", "https://host/a.mp4"),
        ("http://u:p@ss@host/x", "http://host/x"),
        ("RTSP://user:word@host", "RTSP://host"),
        ("rtmp://word@host/live", "rtmp://host/live"),
        ("http://[::1]:80/@someone/x", "http://[::1]:80/@someone/x"),
        ("http://u:p@[::1]/x", "http://[::1]/x"),
        ("http://[broken/x", "http://[broken/x"),
        ("http://host:80/@someone/x", "http://host:80/@someone/x"),
        ("rtsp://user:wo/rd@host/live", "rtsp://host/live"),
        ("rtsp://user:wo#rd@host/live", "rtsp://host/live"),
        ("rtsp://user:wo?rd@host/live?key=secret", "rtsp://host/live"),
        ("http://host?key=secret", "http://host"),
        ("rtsp://", "rtsp://"),
    ],
)
def test_no_secret_is_shown(url, shown):
    assert without_secrets(url) == shown
    assert without_secrets(shown) == shown
    assert word_without_secrets(f"--input={url}") == f"--input={shown}"
    assert text_without_secrets(f"open({url!r}): no\n{url} <{url}>") == (
        f"open({shown!r}): no\n{shown} <{shown}>"
    )


@pytest.mark.parametrize("text", ["", "0", "a/b@c?d#e.mp4", "--line=a:0,0,1,1", "C:\\x?y"])
def test_other_texts_stay_as_they_are(text):
    assert without_secrets(text) == word_without_secrets(text) == text_without_secrets(text) == text
