"""Gathers what the phases measured into one page that stands alone, and the same in Markdown.

    python -m common.report                       # outputs/metrics/report.html and report.md
    python -m common.report --output /tmp/report  # elsewhere

Reads outputs/metrics/*.json, outputs/videos/*.json and outputs/deployment/package_info.json. What
has not been measured yet is left open, with the command that measures it.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so `python common/report.py` works too

from common import artifacts, cli, paths

Report = Mapping[str, Any]

TITLE = "Detection and tracking report"
METRICS = (
    "training",
    "profile",
    "inference_benchmark",
    "amp_comparison",
    "tracking_eval",
    "export",
    "quantization",
)


@dataclass(frozen=True)
class Inputs:
    """The reports there are, by name; a name that is absent has not been measured."""

    metrics: Mapping[str, Report]
    videos: Mapping[str, Report] = field(default_factory=dict)  # the newest first
    package: Report | None = None

    def all(self) -> dict[str, Report]:
        package = {"package": self.package} if self.package else {}
        return {**self.metrics, **self.videos, **package}


def read_inputs() -> Inputs:
    """Raises UserError when one of the files is no JSON."""
    from common.reporting import tracking

    metrics = {
        name: artifacts.read_json(path)
        for name in METRICS
        if (path := paths.METRICS / f"{name}.json").is_file()
    }
    trained = artifacts.sidecar(paths.MODELS / paths.BEST_MODEL.name)
    if "training" in metrics and trained.is_file():  # the model it made: is it still the one used?
        digest = artifacts.read_json(trained).get("sha256")
        metrics["training"]["inputs"] = {paths.BEST_MODEL.name: digest}
    files = tracking.report_files(paths.VIDEOS)
    videos = {path.stem: artifacts.read_json(path) for path in files}
    tracked = {name: report for name, report in videos.items() if "frames_read" in report}
    newest_first = sorted(tracked, key=lambda name: str(tracked[name].get("created")), reverse=True)
    info = paths.DEPLOYMENT / "package_info.json"
    return Inputs(
        metrics,
        {name: tracked[name] for name in newest_first},
        artifacts.read_json(info) if info.is_file() else None,
    )


def build(inputs: Inputs) -> dict[str, Any]:
    """What both renderings show: `title`, `subtitle`, `notices`, `cards` and `sections`."""
    from common.reporting import origin, results, speed, tracking

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
            results.training_section(get("training"), paths.METRICS),
            speed.profile_section(get("profile")),
            speed.speedup_section(benchmark),
            speed.batch_section(benchmark),
            speed.amp_section(get("amp_comparison")),
            tracking.section(evaluation, inputs.videos, paths.VIDEOS),
            results.formats_section(get("export"), get("quantization")),
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
    return template.render(**content, word_columns=blocks.WORD_COLUMNS, place=charts.plot)


def render_markdown(content: Mapping[str, Any]) -> str:
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
    page, words = output / "report.html", output / "report.md"
    artifacts.write_text(page, render_html(content))
    artifacts.write_text(words, render_markdown(content))
    missing = [section.title for section in content["sections"] if section.missing]
    if missing:
        cli.log.info("Not measured yet: %s", ", ".join(missing))
    return [page, words]


def build_parser() -> argparse.ArgumentParser:
    parser = cli.ArgumentParser(__doc__)
    cli.add_common_arguments(parser, output=paths.METRICS, output_help="folder of the report")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return cli.run(lambda: cli.finished(write_report(args.output), None), args)


if __name__ == "__main__":
    raise SystemExit(main())
