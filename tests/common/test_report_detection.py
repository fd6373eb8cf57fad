"""The section about detections: curves, confusions, errors and the pictures of this evaluation."""

import cv2
import numpy as np
import pytest

from common import recorded_files, report
from common.reporting import charts, data, deployment, detection, speed
from common.reporting.blocks import (
    Bar,
    Bars,
    Lines,
    Note,
    Pictures,
    Point,
    Scatter,
    Section,
    Table,
)
from tests.common import made_up_reports
from tests.common.test_report import Page

NAMES = ["person", "car", "bus"]


def blocks_of(section, kind):
    return [block for block in section.blocks if isinstance(block, kind)]


def table(section, heading):
    (found,) = [b for b in blocks_of(section, Table) if b.columns[0].startswith(heading)]
    return found


@pytest.fixture
def section(tmp_path):
    return detection.section(made_up_reports.evaluation(NAMES), tmp_path)


# --- detections -------------------------------------------------------------------------------


def test_classes_are_listed_as_they_are_and_drawn_worst_first(section, tmp_path):
    assert table(section, "Class").rows[1] == (
        *("car", "10", "0.570", "0.700", "0.667", "0.600", "6", "3", "2"),
    )
    (bars,) = blocks_of(section, Bars)
    assert [bar.label for bar in bars.bars] == ["person", "car", "bus"]
    many = made_up_reports.evaluation([f"class {i}" for i in range(30)])
    many["classes"][3]["ap"] = None
    (bars,) = blocks_of(detection.section(many, tmp_path), Bars)
    assert len(bars.bars) == detection.MAX_BARS
    assert "class 3" not in [bar.label for bar in bars.bars]


def test_the_mean_curve_and_the_worst_classes_are_drawn(section, tmp_path):
    (chart,) = blocks_of(section, Lines)
    assert [name for name, _ in chart.series] == ["mean of all classes", *NAMES]
    mean = dict(chart.series)["mean of all classes"]
    assert mean[50] == (0.5, pytest.approx(1 - (0.5**2 + 0.5**3 + 0.5**4) / 3))
    many = made_up_reports.evaluation([f"class {i}" for i in range(30)])
    (chart,) = blocks_of(detection.section(many, tmp_path), Lines)
    assert [name for name, _ in chart.series][1:] == [f"class {i}" for i in range(7)]
    one = made_up_reports.evaluation(["car"])
    (chart,) = blocks_of(detection.section(one, tmp_path), Lines)
    assert [name for name, _ in chart.series] == ["car"]


def test_a_class_without_a_curve_is_left_out(tmp_path):
    content = made_up_reports.evaluation(NAMES)
    content["pr_curves"]["precision"]["car"] = None
    content["pr_curves"]["precision"]["bus"][3] = None
    assert list(detection.precision_curves(content)) == ["person"]
    assert detection.mean_curve({}) == []


def test_the_confusion_matrix_is_shaded_by_the_share_of_its_row(section):
    matrix = table(section, "Ground truth")
    assert matrix.rows == (
        ("person", "6", "1", "", "3"),
        ("car", "", "6", "1", "3"),
        ("bus", "1", "", "6", "3"),
        ("background", "2", "2", "2", ""),
    )
    assert matrix.shades[0] == pytest.approx((0, 0.6, -0.1, 0, -0.3))
    assert not any(matrix.shades[-1]), "false alarms are no share of anything"


def test_of_many_classes_those_with_the_most_errors_are_shown(tmp_path):
    names = [f"class {index}" for index in range(40)]
    content = made_up_reports.evaluation(names)
    counts = content["confusion"]["counts"]
    counts[20][-1], counts[5][7], counts[5][5] = 50, 40, 100
    matrix = table(detection.section(content, tmp_path), "Ground truth")
    assert len(matrix.rows) == detection.MAX_CONFUSED + 1
    assert matrix.rows[-2][0] == "29 other classes"
    assert {"class 5", "class 7", "class 20"} <= {row[0] for row in matrix.rows}
    cells = [[int(cell or 0) for cell in row[1:]] for row in matrix.rows]
    assert sum(map(sum, cells)) == sum(map(sum, counts)), "nothing is lost"
    by_name = dict(zip([row[0] for row in matrix.rows], cells, strict=True))
    assert by_name["class 20"][-1] == 50


def test_errors_are_counted_with_their_reasons_and_the_worst_named(section):
    assert table(section, "Errors").rows[0] == ("Missed objects", "3", "badly placed box: 3")
    worst = table(section, "Worst errors")
    assert len(worst.rows) == 3 * detection.SHOWN_ERRORS
    assert worst.rows[-1] == (
        *("Wrong class", "000007.jpg", "person", "bus", "0.93", "badly placed box"),
    )


def test_a_picture_of_another_evaluation_is_not_shown_but_told(tmp_path):
    path = tmp_path / detection.WORST_MISSES
    cv2.imwrite(str(path), np.full((40, 60, 3), 99, np.uint8))
    content = made_up_reports.evaluation(NAMES) | {"files": recorded_files.record([path])}
    assert len(blocks_of(detection.section(content, tmp_path), Pictures)) == 1
    cv2.imwrite(str(path), np.full((40, 60, 3), 98, np.uint8))
    section = detection.section(content, tmp_path)
    assert blocks_of(section, Pictures) == []
    assert any(f"{path.name} is not of the evaluation" in n.text for n in blocks_of(section, Note))


def test_without_an_evaluation_the_sample_predictions_are_still_shown(tmp_path):
    cv2.imwrite(str(tmp_path / detection.PREDICTIONS), np.full((40, 60, 3), 99, np.uint8))
    section = detection.section(None, tmp_path)
    assert section.missing == detection.EVALUATE_COMMAND
    (shown,) = section.blocks
    assert shown.is_wide


# --- data, memory, runtimes, pruning ----------------------------------------------------------


def test_problems_of_the_data_are_counted_by_kind():
    section = data.section(made_up_reports.data_report(NAMES))
    assert table(section, "Split").rows[0] == ("train", "400", "2", "1,234", "1")
    assert table(section, "Boxes").rows[2] == ("bus", "102", "102")
    assert table(section, "Severity").rows == (
        ("warning", "tiny box", "train", "3", "a box of person is 1 pixel wide"),
    )
    clean = data.section(made_up_reports.data_report(NAMES) | {"problems": []})
    assert blocks_of(clean, Note)[0].text == "The check found nothing."


def test_of_many_classes_the_rarest_are_listed():
    section = data.section(made_up_reports.data_report([f"class {i}" for i in range(90)]))
    rows = table(section, "Boxes").rows
    assert [row[0] for row in rows] == [f"class {i}" for i in range(data.SHOWN_CLASSES)]


def test_memory_has_its_peak_and_picture(tmp_path):
    cv2.imwrite(str(tmp_path / "profile_memory.png"), np.full((40, 60, 3), 99, np.uint8))
    section = speed.memory_section(made_up_reports.profile(), tmp_path)
    assert table(section, "Step").rows == (("training", "72.8", "backward"),)
    assert len(blocks_of(section, Pictures)) == 1
    assert speed.memory_section(None, tmp_path).missing == speed.PROFILE_COMMAND


def test_pruned_models_stand_beside_the_unpruned_one():
    section = deployment.pruning_section(made_up_reports.pruning())
    unpruned, zeros, removed = table(section, "Model").rows
    assert unpruned[:5] == ("unpruned", "ok", "0.6370", "baseline", "baseline")
    assert zeros[3:6] == ("+0.0000", "1.00x (0.98 to 1.02)", "within noise")
    assert zeros[6:] == ("30.0", "30.0%", "0.0%", "7.35", "5.50", "9.50")
    assert removed[1:4] == ("rejected", "0.4370", "-0.2000")
    assert removed[5] == "faster"
    assert [note.text for note in blocks_of(section, Note)] == [
        "removed_0.3 is rejected: mAP drop 0.2000 over the budget of 0.02.",
        "Zeros in dense tensors buy no speed.",
    ]


def test_a_runtime_that_was_skipped_says_why():
    rows = table(deployment.runtimes_section(made_up_reports.onnx_test()), "Runtime").rows
    assert rows[0][:6] == ("onnxruntime", "CPUExecutionProvider", "1.31", "17.0", "41", "100.0%")
    assert rows[1][-2:] == ("skipped", "no browser")


# --- the waterfall and speed against accuracy -------------------------------------------------


def rung(name, ratio, over=None, status="ok"):
    step = over and {"over": over, "ratio": 1.0}
    return {"variant": name, "speedup": {"ratio": ratio, "ci95": None}, "step": step} | {
        "status": status
    }


def test_a_bar_begins_where_the_rung_it_adds_to_ends():
    rows = [
        rung("eager", 1.0),
        rung("graph", 1.5, "eager"),
        rung("slow", 1.2, "graph"),
        rung("wrong", 2.0, "graph", "invalid: nothing is found"),
        rung("untold", 1.1, "somewhere else"),
        {"variant": "oom", "status": "oom"},
    ]
    bars = speed.waterfall(rows, rows[0])
    assert [(bar.label, bar.start, bar.value, bar.state) for bar in bars] == [
        ("eager", 0.0, 1.0, "baseline"),
        ("graph", 1.0, 1.5, ""),
        ("slow", 1.5, 1.2, "loss"),
        ("wrong", 1.5, 2.0, "invalid"),
        ("untold", 0.0, 1.1, ""),
    ]
    assert bars[3].text == "2.00x (invalid)"


def test_a_falling_bar_is_as_wide_as_its_loss():
    bars = Bars("t", (Bar("a", 2.0, "2"), Bar("b", 1.0, "1", state="loss", start=2.0)))
    assert bars.scale == 2.0
    content = {"title": "", "subtitle": "", "notices": [], "cards": []}
    html = report.render_html({**content, "sections": [Section("s", "r", [bars])]})
    assert 'class="loss" style="left:50.00%;width:50.00%"' in html


def test_speed_against_accuracy_joins_what_no_other_beats():
    points = (
        *(Point("b", 20.0, 0.61), Point("a", 10.0, 0.62), Point("worse", 15.0, 0.60)),
        *(Point("c", 30.0, 0.60), Point("wrong", 40.0, 0.62, is_valid=False)),
    )
    plot = charts.scatter(Scatter("t", "x", "y", points))
    assert [(dot.number, dot.name) for dot in plot.dots] == [
        *((1, "a"), (2, "worse"), (3, "b"), (4, "c"), (5, "wrong"))
    ]
    place = {dot.name: (dot.x, dot.y) for dot in plot.dots}
    (line,) = plot.curves
    assert line.points == (
        place["a"],
        (place["a"][0], place["b"][1]),
        place["b"],
        (place["b"][0], place["c"][1]),
        place["c"],
    )
    assert all(plot.left <= dot.x <= plot.right for dot in plot.dots)
    assert all(0 < dot.y <= plot.bottom for dot in plot.dots)


def test_equal_accuracies_look_equal():
    plot = charts.scatter(Scatter("t", "x", "y", (Point("a", 1.0, 0.6), Point("b", 2.0, 0.6001))))
    assert abs(plot.dots[0].y - plot.dots[1].y) < 2
    assert plot.y_ticks[0][1] < "0.6" < plot.y_ticks[-1][1]


def test_points_need_both_numbers_and_company():
    rows = [
        {"variant": "a", "throughput_img_s": 10.0, "map": 0.6, "status": "ok"},
        {"variant": "b", "throughput_img_s": 10.0, "map": None, "status": "ok"},
    ]
    assert speed.pareto(rows, "t") == []
    rows[1]["map"] = 0.5
    (chart,) = speed.pareto(rows, "t")
    assert [point.label for point in chart.points] == ["a", "b"]


def test_a_scale_of_recall_has_round_ticks():
    chart = Lines("t", "recall", (("a", ((0.0, 1.0), (0.5, 0.5), (1.0, 0.0))),), 1.0, True)
    plot = charts.plot(chart)
    assert [label for _, label in plot.x_ticks] == ["0", "0.25", "0.5", "0.75", "1"]
    (curve,) = plot.curves
    assert [x for x, _ in curve.points] == [plot.left, (plot.left + plot.right) / 2, plot.right]


def test_tints_are_pale_and_told_apart():
    assert charts.tint(1.0) == "rgba(0,114,178,0.50)"
    assert charts.tint(-0.5) == "rgba(213,94,0,0.29)"
    assert charts.tint(-7.0) == "rgba(213,94,0,0.50)"


def test_the_page_draws_every_kind_of_chart(section):
    chart = Scatter("t", "x", "y", (Point("<b>", 1.0, 0.6), Point("c", 2.0, 0.7, is_valid=False)))
    content = {"title": "", "subtitle": "", "notices": [], "cards": []}
    html = report.render_html({**content, "sections": [section, Section("s", "r", [chart])]})
    page = Page(html)
    assert "<b>" in page.text
    assert "c (invalid)" in page.text
    assert html.count('class="dot hollow"') == 1
    assert html.count('style="background:rgba(0,114,178') == len(NAMES)
