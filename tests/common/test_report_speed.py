"""The sections about time: what was not measured, what the runs warned of, and the charts."""

import pytest

from common.reporting import blocks, charts, results, speed
from common.reporting.blocks import Lines, Note, Table
from tests.common import made_up_reports

NO_BF16 = "not run: this processor has no bfloat16 instructions"
NOT_INSTALLED = "unavailable: openvino is not installed"


def words(section) -> list[str]:
    return [block.text for block in section.blocks if isinstance(block, Note)]


def benchmark_with(*statuses: tuple[str, str]) -> dict:
    """With variants that have no time at the batch size that is shown, and why."""
    report = made_up_reports.benchmark()
    for name, status in statuses:
        row = {"variant": name, "batch_size": report["optimal_batch_size"], "status": status}
        report["results"].append(row)
    return report


def test_variants_that_were_not_run_are_named_by_reason_and_fill_no_rows():
    report = benchmark_with(("bf16", NO_BF16), ("openvino", NOT_INSTALLED), ("bf16_b", NO_BF16))
    section = speed.speedup_section(report)
    told = words(section)
    assert f"bf16, bf16_b are {NO_BF16}." in told
    assert f"openvino is {NOT_INSTALLED}." in told
    for table in (block for block in section.blocks if isinstance(block, Table)):
        assert [row[0] for row in table.rows] == list(made_up_reports.VARIANTS)


def test_a_variant_without_a_time_keeps_its_row_where_no_sentence_says_why():
    section = speed.speedup_section(benchmark_with(("large", "oom")))
    for table in (block for block in section.blocks if isinstance(block, Table)):
        assert table.rows[-1][0] == "large"


def test_arms_without_a_time_say_why():
    report = made_up_reports.amp()
    report["arms"].append({"name": "tf32", "status": "unavailable: needs a CUDA GPU"})
    assert "tf32 is unavailable: needs a CUDA GPU." in words(speed.amp_section(report))


@pytest.mark.parametrize(
    ("make", "section"),
    [
        (made_up_reports.benchmark, speed.speedup_section),
        (made_up_reports.profile, speed.profile_section),
        (made_up_reports.amp, speed.amp_section),
    ],
)
def test_what_a_run_warned_of_is_shown(make, section):
    warned = make() | {"warnings": ["the clock was lowered while this ran"]}
    assert "Warning: the clock was lowered while this ran" in words(section(warned))
    for value in ([], None, {}, [7]):
        assert not any("Warning" in each for each in words(section(make() | {"warnings": value})))


def test_formats_that_share_a_reason_share_a_sentence():
    rows = [{"name": name, "status": NOT_INSTALLED} for name in ("openvino", "openvino_int8")]
    section = results.formats_section({"formats": rows}, None)
    assert words(section) == [f"openvino, openvino_int8 are {NOT_INSTALLED}."]


def test_no_two_of_many_curves_look_alike():
    series = tuple((f"variant {index}", ((1.0, 1.0), (2.0, 2.0))) for index in range(24))
    curves = charts.plot(Lines("t", "x", series)).curves
    assert len({(curve.color, curve.dashes) for curve in curves}) == 24


@pytest.mark.parametrize(
    ("value", "found"), [(["a", 7, "b"], ["a", "b"]), ("a", ["a"]), (None, []), ({"a": 1}, [])]
)
def test_sentences(value, found):
    assert blocks.sentences(value) == found
