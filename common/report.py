"""Gathers what the phases measured into one page that stands alone, and the same in Markdown.

    python -m common.report                       # outputs/metrics/report.html and report.md
    python -m common.report --output /tmp/report  # elsewhere
    python -m common.report --compare RUN_A RUN_B # comparison.html and comparison.md of two runs

Reads the JSON files, and the pictures beside them, that the phases left in outputs/metrics,
outputs/videos and outputs/deployment. What has not been measured yet is left open, with the
command that measures it. A run to compare is an outputs folder, or the metrics folder in one (then
without its videos).
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so `python common/report.py` works too

from common import artifacts, cli, paths
from common.reporting.inputs import METRICS as METRICS  # what a page is made of
from common.reporting.inputs import Inputs, folders_of, read_inputs

TITLE = "Detection and tracking report"


def build(inputs: Inputs) -> dict[str, Any]:
    """What both renderings show: `title`, `subtitle`, `notices`, `cards` and `sections`."""
    from common.reporting import data, deployment, detection, origin, results, speed, tracking

    get = inputs.metrics.get
    benchmark, evaluation = get("inference_benchmark"), get("tracking_eval")
    cards = [
        results.training_card(get("training")),
        speed.speed_card(benchmark),
        *tracking.cards(evaluation, inputs.videos),
        results.package_card(paths.DEPLOYMENT, inputs.package),
    ]
    return {
        "title": TITLE,
        "subtitle": origin.summary(inputs.all()),
        "notices": origin.notices(inputs.all()),
        "cards": [card for card in cards if card],
        "sections": [
            data.section(get("data_report")),
            results.training_section(get("training"), has_classes="evaluation" in inputs.metrics),
            detection.section(get("evaluation"), paths.METRICS),
            speed.profile_section(get("profile")),
            speed.memory_section(get("profile"), paths.METRICS),
            speed.speedup_section(benchmark),
            speed.batch_section(benchmark),
            speed.amp_section(get("amp_comparison")),
            tracking.section(evaluation, inputs.videos, paths.VIDEOS),
            tracking.explained_section(inputs.explained, paths.METRICS),
            results.formats_section(get("export"), get("quantization")),
            deployment.runtimes_section(get("onnx_test")),
            deployment.pruning_section(get("pruning")),
            results.package_section(paths.DEPLOYMENT, inputs.package),
            origin.section(inputs.all()),
        ],
    }


def render_html(content: Mapping[str, Any]) -> str:
    """One page without a script or anything to load; every text in it is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    from common.reporting import blocks, charts

    environment = Environment(
        loader=FileSystemLoader(ROOT / "common" / "reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("page.html.j2")
    return template.render(
        **content,
        word_columns=blocks.WORD_COLUMNS,
        sentence_columns=blocks.SENTENCE_COLUMNS,
        charts=tuple(charts.PLACES),
        place=lambda chart: charts.PLACES[chart.kind](chart),
        tint=charts.tint,
    )


def render_markdown(content: Mapping[str, Any]) -> str:
    """The same without charts and pictures; every text in it is escaped."""
    from common.reporting.blocks import escape_markdown, markdown

    cards = [
        f"- **{escape_markdown(card.label)}: {escape_markdown(card.value)}** – "
        f"{escape_markdown(card.note)}"
        for card in content["cards"]
    ]
    parts = [
        f"# {content['title']}",
        escape_markdown(content["subtitle"]),
        *(f"> {escape_markdown(notice)}" for notice in content["notices"]),
        "\n".join(cards),
        *map(markdown, content["sections"]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def write_report(output: Path) -> list[Path]:
    """Writes report.html and report.md into `output` and returns their paths."""
    content = build(read_inputs())
    written = _write(content, output, "report")
    missing = [section.title for section in content["sections"] if section.missing]
    if missing:
        cli.log.info("Not measured yet: %s", ", ".join(missing))
    return written


def build_comparison(first: Inputs, second: Inputs, names: Sequence[str]) -> dict[str, Any]:
    """What `build` returns, of two runs; `names` are those of A and B."""
    from common.reporting import compare, conditions

    made, cards = compare.sections(first, second)
    return {
        "title": "Two runs compared",
        "subtitle": f"A is {names[0]}, B is {names[1]}. {compare.READING}",
        "notices": conditions.notices(first, second),
        "cards": cards,
        "sections": [*made, conditions.section(first, second)],
    }


def write_comparison(runs: Sequence[Path], output: Path) -> list[Path]:
    """Writes comparison.html and comparison.md of two runs into `output` and returns their paths.

    Raises:
        UserError: one of the runs holds no results, or a damaged one.
    """
    first, second = (read_inputs(folders_of(run)) for run in runs)
    content = build_comparison(first, second, [paths.display(run) for run in runs])
    for notice in content["notices"]:
        cli.log.warning("%s", notice)
    return _write(content, output, "comparison")


def _write(content: Mapping[str, Any], output: Path, name: str) -> list[Path]:
    page, words = output / f"{name}.html", output / f"{name}.md"
    artifacts.write_text(page, render_html(content))
    artifacts.write_text(words, render_markdown(content))
    return [page, words]


def build_parser() -> argparse.ArgumentParser:
    parser = cli.ArgumentParser(__doc__)
    parser.add_argument(
        "--compare",
        nargs=2,
        type=Path,
        metavar=("RUN_A", "RUN_B"),
        help="two outputs folders, or metrics folders, side by side",
    )
    cli.add_common_arguments(parser, output=paths.METRICS, output_help="folder of the report")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)

    def work() -> None:
        if args.compare:
            saved = write_comparison(args.compare, args.output)
        else:
            saved = write_report(args.output)
        cli.finished(saved, None)

    return cli.run(work, args)


if __name__ == "__main__":
    raise SystemExit(main())
