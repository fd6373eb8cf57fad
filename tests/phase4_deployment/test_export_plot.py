"""The title of the picture; that there is a picture, test_export_all.py checks."""

import pytest

from phase4_deployment import export_plot


@pytest.mark.parametrize(
    ("threads", "exported", "expected"),
    [
        (1, 1000, "demo, a CPU, 1 thread, torch 2.15.0, 40 validation images"),
        (
            2,
            300,
            "demo, a CPU, 2 threads, torch 2.15.0, 40 validation images, "
            "300 of 1000 proposals when exported",
        ),
    ],
)
def test_the_title_tells_what_was_measured_where(threads, exported, expected):
    machine = {"device_name": "a CPU", "threads": threads, "packages": {"torch": "2.15.0"}}
    proposals = {"model": 1000, "exported": exported}
    report = {"architecture": "demo", "environment": machine, "val_images": 40}
    assert export_plot._title({**report, "max_proposals": proposals}) == expected
