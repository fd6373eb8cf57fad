"""common.report: a page that stands alone, whatever is missing, odd or hostile in its inputs."""

import json
import math
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common import paths, report
from common.reporting import blocks, charts, origin, results, speed
from common.reporting.blocks import Bar, Bars, Lines, Section, Table
from tests.common import made_up_reports

HOSTILE = ["<script>alert(1)</script>", "$x^2$", "犬 猫", "a|b\nc", '"><img src=x>', "x" * 300]


@pytest.fixture
def outputs(tmp_path, monkeypatch):
    """An empty outputs folder that common.report reads."""
    for name in ("MODELS", "METRICS", "VIDEOS", "DEPLOYMENT"):
        monkeypatch.setattr(paths, name, tmp_path / name.lower())
    return tmp_path


def build_pages() -> tuple[str, str]:
    content = report.build(report.read_inputs())
    return report.render_html(content), report.render_markdown(content)


class Page(HTMLParser):
    """Collects the elements, their addresses and the text of a page."""

    VOID = frozenset({"meta", "img", "line", "circle", "polyline"})

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.words: list[str] = []
        self.feed(page)
        assert self.open == [], "every element is closed"

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attributes:
            assert not name.startswith("on"), "no event handlers"
            if name in ("src", "href", "srcset", "action", "data"):
                self.addresses.append(value or "")

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


# --- the whole page ---------------------------------------------------------------------------


def test_nothing_measured_names_every_command(outputs):
    html, markdown = build_pages()
    for command in (
        *("phase1_training/train.py", "phase2_optimization/gpu_profiler.py"),
        *("phase2_optimization/benchmark_inference.py", "phase2_optimization/mixed_precision.py"),
        *("phase3_tracking/video_detector.py", "phase4_deployment/export_all.py"),
        *("phase1_training/check_data.py", "phase1_training/evaluate_detector.py"),
        *("phase4_deployment/pruning.py", "phase4_deployment/test_onnx.py"),
        "phase3_tracking/explain_tracking.py",
    ):
        assert f"python {command}" in Page(html).text
        assert f"`python {command}`" in markdown


def test_everything_measured_leaves_nothing_open(outputs):
    made_up_reports.write_all(outputs, ["person", "car"])
    html, markdown = build_pages()
    page = Page(html)
    assert "Not measured yet" not in page.text
    assert "Not measured yet" not in markdown
    assert page.tags.count("h2") == markdown.count("\n## ") == 15
    assert page.tags.count("img") == 5 + charts.STRIP_FRAMES
    for words in ("0.900", "1.48x", "0.912", "11.3", "3.0 MiB", "b" * 64, "0123456789ab"):
        assert words in page.text
        assert words in markdown


@pytest.mark.parametrize("name", report.METRICS)
def test_each_result_alone_makes_a_page(outputs, name):
    made_up_reports.write_all(outputs, ["person"])
    for file in outputs.glob("*/*.json"):
        if file.stem != name:
            file.unlink()
    Page(build_pages()[0])


def test_the_page_stands_alone(outputs):
    made_up_reports.write_all(outputs, HOSTILE)
    html, _ = build_pages()
    page = Page(html)
    assert all(address.startswith(("data:image/jpeg;base64,", "#")) for address in page.addresses)
    assert not {"script", "link", "iframe", "object", "base"} & set(page.tags)
    assert not re.search(r"https?:|url\(|@import", html)


@pytest.mark.fault("P2-40")
def test_hostile_names_are_shown_as_they_are(outputs):
    made_up_reports.write_all(outputs, HOSTILE)
    html, markdown = build_pages()
    for name in HOSTILE:
        assert " ".join(name.split()) in Page(html).text
    assert "<script" not in markdown
    assert "\\$x^2\\$" in markdown
    for heading, cells in (("Class |", 9), ("Boxes of each class", 3), ("Ground truth \\\\ ", 8)):
        columns = {line.count("|") - line.count("\\|") for line in table(markdown, heading)}
        assert columns == {cells + 1}, "no name adds a cell"


def table(markdown: str, heading: str) -> list[str]:
    start = markdown.index(f"| {heading}")
    return markdown[start : markdown.index("\n\n", start)].splitlines()


def test_numbers_that_are_none_are_left_open(outputs):
    made_up_reports.write_all(outputs, ["car"])
    for file in (outputs / "metrics").glob("*.json"):
        text = re.sub(r": \d+\.\d+", ": NaN", file.read_text(encoding="utf-8"))
        file.write_text(text, encoding="utf-8")
    html, markdown = build_pages()
    assert "nan" not in Page(html).text.lower()
    assert "nan" not in markdown.lower()
    assert not re.search(r"(width|left):(nan|inf)", html)


@settings(max_examples=60)
@given(st.data())
def test_a_report_that_lacks_something_still_makes_a_page(data):
    """Any one value of any report removed, or replaced by null, NaN or one of another type."""
    video, evaluation = made_up_reports.tracking(["car"])
    made_up = {
        "data_report": made_up_reports.data_report(["car"]),
        "training": made_up_reports.training(["car"]),
        "evaluation": made_up_reports.evaluation(["car", "bus"]),
        "profile": made_up_reports.profile(),
        "inference_benchmark": made_up_reports.benchmark(),
        "amp_comparison": made_up_reports.amp(),
        "tracking_eval": evaluation,
        "export": made_up_reports.report("export", formats=made_up_reports.formats("onnx")),
        "onnx_test": made_up_reports.onnx_test(),
        "pruning": made_up_reports.pruning(),
        "video": video,
    }
    metrics = json.loads(json.dumps(made_up))  # they share parts, which must stay whole
    place = metrics[data.draw(st.sampled_from(sorted(metrics)))]
    while True:
        key = data.draw(st.sampled_from(list(place) if isinstance(place, dict) else [0, -1]))
        if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    value = data.draw(st.sampled_from([None, math.nan, "removed", "a word", 7, [], {}]))
    if value == "removed":
        del place[key]
    else:
        place[key] = value
    content = report.build(report.Inputs(metrics, {"video": metrics.pop("video")}))
    Page(report.render_html(content))
    report.render_markdown(content)


# --- the command ------------------------------------------------------------------------------


def test_the_command_writes_both_files(run_script, outputs_dir):
    made_up_reports.write_all(outputs_dir, ["car"])
    done = run_script("common/report.py")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Saved" in done.stdout
    Page((outputs_dir / "metrics" / "report.html").read_text(encoding="utf-8"))
    assert (outputs_dir / "metrics" / "report.md").is_file()


def test_a_damaged_result_is_named(run_script, outputs_dir):
    (outputs_dir / "metrics").mkdir(parents=True)
    (outputs_dir / "metrics" / "training.json").write_text("{")
    done = run_script("common/report.py")
    assert done.returncode == 2
    assert "training.json: not valid JSON" in done.stderr
    assert not (outputs_dir / "metrics" / "report.html").exists()


# --- what the page says -----------------------------------------------------------------------


def test_a_profile_says_in_which_precision_where_it_knows():
    profile = made_up_reports.profile()
    profile["inference"]["precision"] = "bfloat16"
    titles = [
        block.title for block in speed.profile_section(profile).blocks if hasattr(block, "title")
    ]
    assert titles == [
        "One training step, batch size 4",
        "One inference step, batch size 4, bfloat16",
    ]


def test_what_a_rung_alone_buys_has_its_interval_and_says_where_it_is_not_told():
    benchmark = made_up_reports.benchmark()
    rows = [row for row in benchmark["results"] if row["batch_size"] == 4]
    untold = {"over": rows[1]["variant"], "ratio": 1.04, "ci95": [0.97, 1.11]}
    rows[1]["step"] = {"over": rows[0]["variant"], "ratio": 1.12, "ci95": [1.08, 1.17]} | {
        "verdict": "faster"
    }
    rows[2]["step"] = {**untold, "verdict": "within noise"}
    rows[3]["step"] = {**untold, "ci95": None, "verdict": "too few rounds to tell"}
    rows[4]["step"] = {**untold, "ratio": 0.8, "ci95": [0.75, 0.85], "verdict": "slower"}
    over = rows[1]["variant"]
    (table, _) = (b for b in speed.speedup_section(benchmark).blocks if isinstance(b, Table))
    column = table.columns.index("Over the rung below")
    assert [row[column] for row in table.rows] == [
        "–",
        "1.12x (1.08 to 1.17)",
        "1.04x (0.97 to 1.11), within noise",
        f"1.04x over {over}, too few rounds to tell",
        f"0.80x (0.75 to 0.85) over {over}",
        "–",
    ]


def test_rows_without_a_name_or_a_size_are_left_out():
    rows = [{"variant": ["a"], "batch_size": 1}, {"variant": "a", "batch_size": []}]
    rows.append({"variant": "a", "batch_size": 1})
    assert speed.rows_of({"results": rows}) == rows[2:]


def test_the_headline_takes_only_results_that_hold():
    benchmark = made_up_reports.benchmark()
    row = speed.fastest(benchmark)
    assert row is not None
    assert row["variant"] == "inference_graph_channels_last", "1.62x is faster but invalid"
    card = speed.speed_card(benchmark)
    assert card is not None
    assert "mAP -0.0005" in card.note


def test_an_interval_around_one_is_no_speed_up():
    benchmark = made_up_reports.benchmark()
    for row in benchmark["results"]:
        row["speedup"] = {"ratio": 1.02, "ci95": [0.99, 1.05]}
    assert speed.fastest(benchmark) is None
    card = speed.speed_card(benchmark)
    assert card is not None
    assert card.value == "none"


def test_what_the_benchmark_concluded_counts():
    benchmark = made_up_reports.benchmark()
    for row in benchmark["results"]:
        row["verdict"] = "too few iterations to tell"
    assert speed.fastest(benchmark) is None


def test_results_of_different_models_are_pointed_out():
    one, other = made_up_reports.profile(), made_up_reports.amp()
    assert origin.notices({"profile": one, "amp": other}) == []
    other["inputs"] = {"outputs/models/best_model.pth": "f" * 64}
    (notice,) = origin.notices({"profile": one, "amp": other})
    assert "2 different models" in notice


def test_results_of_an_earlier_model_are_pointed_out(outputs):
    made_up_reports.write_all(outputs, ["car"])
    (outputs / "models").mkdir()
    for digest, words in (("a" * 64, 0), ("f" * 64, 1)):
        sidecar = json.dumps({"sha256": digest})
        (outputs / "models" / "best_model.json").write_text(sidecar, encoding="utf-8")
        assert Page(build_pages()[0]).text.count("2 different models") == words


def test_a_format_measured_twice_is_shown_as_the_export_has_it():
    """quantization.json may be of a later run, whose times belong to another baseline."""
    export = {"formats": [{"name": "pytorch_fp32", "size_mib": 1.0, "status": "ok"}]}
    later = {"name": "pytorch_fp32", "size_mib": 2.0, "status": "rejected: slow"}
    added = {"name": "pytorch_int8_dynamic", "size_mib": 3.0, "status": "ok"}
    section = results.formats_section(export, {"formats": [later, added]})
    (shown,) = section.blocks
    assert isinstance(shown, Table)
    assert [row[:2] for row in shown.rows] == [
        ("pytorch_fp32", "1.0"),
        ("pytorch_int8_dynamic", "3.0"),
    ]


def test_the_package_is_checked_by_its_own_command(tmp_path):
    files = {"a": {"bytes": 1, "sha256": "0" * 64}}
    reading = results.package_section(tmp_path, {"files": files}).reading
    assert "python detect.py --verify" in reading
    assert "sha256sum" not in reading


def test_package_size_counts_the_listed_files(tmp_path):
    (tmp_path / "a").write_bytes(bytes(1 << 20))
    (tmp_path / "unlisted").write_bytes(bytes(1 << 20))
    assert results.package_size(tmp_path, {"files": {"a": {"sha256": "0"}}}) == 1.0
    assert results.package_size(tmp_path, None) is None


# --- formatting -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shown", "words"),
    [
        (blocks.number(1234.567, 1), "1,234.6"),
        (blocks.number(-0.5, 2, "ms", sign=True), "-0.50 ms"),
        (blocks.number(math.nan), "–"),
        (blocks.number(None), "–"),
        (blocks.number("3"), "–"),
        (blocks.number(True), "–"),
        (blocks.percent(0.5), "50%"),
        (blocks.percent(math.inf), "–"),
        (blocks.interval({"ratio": 1.5, "ci95": [1.25, 1.75]}), "1.50x (1.25 to 1.75)"),
        (blocks.interval({"ratio": 1.5}), "1.50x"),
        (blocks.interval(None), "–"),
        (blocks.map_change(0.5, 0.75), "-0.2500"),
        (blocks.map_change(0.5, None), "–"),
        (blocks.dig({"a": [{"b": 1}]}, "a", 0, "b"), 1),
        (blocks.dig({"a": None}, "a", "b"), None),
    ],
)
def test_how_values_read(shown, words):
    assert shown == words


def test_markdown_makes_no_link_of_a_name():
    assert blocks.escape_markdown("![x](javascript:y)") == "!\\[x](javascript:y)"


def test_markdown_of_a_table():
    section = Section("T", "How to read.", [Table(("A", "B"), (("x", "1"),))])
    assert blocks.markdown(section) == "\n\n".join(
        ["## T", "How to read.", "| A | B |\n| --- | ---: |\n| x | 1 |"]
    )


def test_bars_share_one_scale():
    bars = Bars("t", (Bar("a", 1.0, ""), Bar("b", 2.0, "", 1.5, 2.5)), reference=1.0)
    assert bars.scale == 2.5
    assert Bars("t", (Bar("a", 0.0, ""),)).scale > 0


@pytest.mark.parametrize(
    ("largest", "step"), [(1.0, 0.25), (4, 1), (0.9, 0.25), (318, 100), (7e-5, 2e-5), (0, 2.5e-10)]
)
def test_round_ticks(largest, step):
    assert charts.nice_step(largest) == pytest.approx(step)


def test_a_chart_lies_within_its_frame():
    chart = Lines("t", "x", (("a", ((1.0, 0.0), (2.0, 3.9))), ("b", ((4.0, 2.0),))))
    plot = charts.plot(chart)
    assert [label for _, label in plot.x_ticks] == ["1", "2", "4"]
    assert [label for _, label in plot.y_ticks] == ["0", "1", "2", "3", "4"]
    assert plot.curves[0].points[0] == (plot.left, plot.bottom)
    assert plot.curves[1].points[0][0] == plot.right
    assert all(0 <= y <= plot.bottom for curve in plot.curves for _, y in curve.points)


def test_unreadable_pictures_are_left_out(tmp_path):
    (tmp_path / "a.png").write_text("no picture")
    (tmp_path / "a.mp4").write_text("no video")
    assert charts.picture(tmp_path / "a.png") is None
    assert charts.video_strip(tmp_path / "a.mp4") == []


def test_made_up_reports_are_json():
    json.dumps(made_up_reports.benchmark(), allow_nan=False)
