"""The counters, worked out by hand, in a text that a strict reader takes."""

import threading

import pytest

from phase4_deployment.package.serving.metrics import Histogram, Metrics
from tests.phase4_deployment.serving.running import samples


def test_a_histogram_counts_up_to_and_including_its_bounds():
    histogram = Histogram("size", "Sizes.", (1, 2, 4))
    for value in (1, 2, 2, 3, 4, 5):
        histogram.observe(value)
    assert list(histogram.lines()) == [
        "# HELP size Sizes.",
        "# TYPE size histogram",
        'size_bucket{le="1"} 1',
        'size_bucket{le="2"} 3',
        'size_bucket{le="4"} 5',
        'size_bucket{le="+Inf"} 6',
        "size_sum 17.0",
        "size_count 6",
    ]


def test_the_text():
    metrics = Metrics('a "quoted"\\model\n.onnx', "CPUExecutionProvider")
    for status in (200, 429, 200):
        metrics.on_request("/detect", status)
    metrics.on_latency(0.03)
    metrics.on_batch(4, 0.2)
    found = samples(metrics.text(queue_length=5, in_work=9))
    assert found['detector_requests_total{path="/detect",status="200"}'] == 2
    assert found['detector_requests_total{path="/detect",status="429"}'] == 1
    assert (found["detector_queue_length"], found["detector_pictures_in_work"]) == (5, 9)
    assert found['detector_batch_size_bucket{le="2"}'] == 0
    assert found['detector_batch_size_bucket{le="4"}'] == 1
    assert found["detector_batch_size_sum"] == 4
    assert found['detector_latency_seconds_bucket{le="0.025"}'] == 0
    assert found['detector_latency_seconds_bucket{le="0.05"}'] == 1
    assert found["detector_inference_seconds_sum"] == 0.2
    (info,) = (key for key in found if key.startswith("detector_info"))
    assert 'model="a \\"quoted\\"\\\\model\\n.onnx"' in info


def test_an_image_takes_what_the_newest_batches_took():
    metrics = Metrics("m", "p")
    assert metrics.image_s == 0
    metrics.on_batch(2, 1.0)
    assert metrics.image_s == 0.5
    metrics.on_batch(1, 1.0)
    assert metrics.image_s == pytest.approx(0.8 * 0.5 + 0.2 * 1.0)


def test_nothing_is_lost_between_threads():
    metrics = Metrics("m", "p")
    threads = [
        threading.Thread(target=lambda: [metrics.on_request("/", 200) for _ in range(2000)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = samples(metrics.text(0, 0))
    assert found['detector_requests_total{path="/",status="200"}'] == 8000
