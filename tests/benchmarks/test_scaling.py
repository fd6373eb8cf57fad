"""Scaling: the arithmetic on made-up values, and both ways to measure on tiny data."""

import pytest

from benchmarks import scaling
from common import artifacts
from tests.coco_data import write_shapes

GIB = 2**30


@pytest.mark.parametrize(
    ("devices", "counts"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])]
)
def test_the_numbers_of_ranks(devices, counts):
    assert scaling.rank_counts(devices) == counts


def test_weak_scaling_loses_what_the_step_takes_longer():
    """4 images a device: 10/s on one; on two 8 images in 0.5 s are 16/s of 20."""
    one, two = scaling.scaling_rows({2: 500.0, 1: 400.0}, {1: 4, 2: 8})
    assert (one["ranks"], one["images_per_s"], one["efficiency"]) == (1, 10, 1)
    assert (two["ranks"], two["images_per_s"], two["efficiency"]) == (2, 16, pytest.approx(0.8))


def test_strong_scaling_gains_what_the_step_takes_less():
    """16 images: 4 devices in a third of the time are 3 times as fast, three quarters of 4."""
    _, four = scaling.scaling_rows({1: 1200.0, 4: 400.0}, {1: 16, 4: 16})
    assert four["images_per_s"] == pytest.approx(40)
    assert four["efficiency"] == pytest.approx(0.75)


def test_a_ring_sends_nearly_twice_the_gradients():
    assert scaling.allreduce_bandwidth(1000, GIB, 2) == GIB
    assert scaling.allreduce_bandwidth(500, GIB, 4) == 3 * GIB


def test_the_expected_share_of_communication():
    """1 GB at 10 GB/s: 0.1 s for two ranks, 0.15 s for four, beside a step of 0.3 s."""
    two, four = scaling.expected_rows(300, 10**9, 10**10, counts=(2, 4))
    assert two["communication_ms"] == pytest.approx(100)
    assert (two["share"], two["efficiency"]) == (pytest.approx(0.25), pytest.approx(0.75))
    assert four["communication_ms"] == pytest.approx(150)
    assert four["share"] == pytest.approx(1 / 3)


def test_a_bandwidth_that_was_measured_explains_its_measurement():
    rate = scaling.allreduce_bandwidth(123, GIB, 2)
    (row,) = scaling.expected_rows(300, GIB, rate, counts=(2,))
    assert row["communication_ms"] == pytest.approx(123)


def test_the_tables_say_what_is_measured_and_what_is_not():
    rows = scaling.scaling_rows({1: 400.0, 2: 500.0}, {1: 4, 2: 8})
    text = scaling.measured_table({"devices": "2 GPUs", "weak": rows, "strong": rows[:1]})
    assert text.startswith("Measured on 2 GPUs\n")
    assert "| 2 | 8 | 500.0 | 16.0 | 0.80 |" in text
    network = {"from": "gloo over loopback, measured", "bytes_per_s": 2.5 * GIB}
    network["rows"] = scaling.expected_rows(300, GIB, 10 * GIB, counts=(2,))
    text = scaling.expected_table(
        {"step_ms": 300, "batch_size": 4, "gradient_bytes": 2**21, "expected": [network]}
    )
    assert text.startswith("Expected, not measured: there is one device here.\n")
    assert "a step of 300.0 ms for 4 images on one device; gradients of 2.0 MiB." in text
    assert "| 2.50 GiB/s, gloo over loopback, measured | 2 | 100.0 | 25% | 0.75 |" in text


# --- on tiny data -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> list[str]:
    data = write_shapes(tmp_path_factory.mktemp("scaling") / "data", splits={"train": 5, "val": 1})
    words = ["--data-path", data, "--min-size", 64, "--max-size", 96, "--batch-size", 2]
    return [str(word) for word in (*words, "--rounds", 2, "--device", "cpu")]


@pytest.mark.slow
def test_one_device_measures_a_step_and_an_all_reduce(words, tmp_path, capsys):
    output = tmp_path / "scaling.json"
    assert scaling.main([*words, "--network-gbit-s", "8", "--output", str(output)]) == 0
    report = artifacts.read_json(output)
    loopback, given = report["expected"]
    assert given["bytes_per_s"] == 1e9
    expected = 1e3 * report["gradient_bytes"] / loopback["bytes_per_s"]
    assert report["allreduce_ms"] == pytest.approx(expected)
    assert loopback["rows"][0]["communication_ms"] == pytest.approx(expected)
    assert report["table"] in capsys.readouterr().out


@pytest.mark.slow
def test_several_ranks_are_measured(words, tmp_path, capsys):
    output = tmp_path / "scaling.json"
    assert scaling.main([*words, "--ranks", "1,2", "--output", str(output)]) == 0
    report = artifacts.read_json(output)
    assert "which its processes share" in report["devices"]
    assert [row["images_per_step"] for row in report["weak"]] == [2, 4]
    assert [row["images_per_step"] for row in report["strong"]] == [4, 4]
    assert report["weak"][1]["step_ms"] == report["strong"][1]["step_ms"]
    assert report["table"] in capsys.readouterr().out


@pytest.mark.parametrize("ranks", ["2", "1,2,3", "3,4"])
def test_ranks_that_cannot_divide_the_images_are_one_line(words, ranks, capsys):
    assert scaling.main([*words, "--ranks", ranks]) == 2
    assert f"--ranks {ranks}: not 1 and divisors of the last" in capsys.readouterr().err
