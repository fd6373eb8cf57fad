"""A folder that shows an exported detector in the browser: any web server can serve it.

    npm install --prefix ~/.cache/onnxruntime-web onnxruntime-web@1.30.0    # once; no Node needed
    python phase4_deployment/web_page.py --onnx-path outputs/deployment/model.onnx
    python -m http.server --bind 127.0.0.1 --directory outputs/web 8000

The page runs the same .onnx file in WebAssembly. Pictures dropped on it stay in the browser.
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so `python phase4_deployment/web_page.py` finds common/

from common import artifacts, cli, paths
from common.cli import UserError, log

PAGE = Path(__file__).resolve().parent / "web"
PAGE_FILES = ("detector.js", "page.js", "index.html")  # the one people open is written last
MODEL, ORT = "model.onnx", "ort"
TESTED_VERSION = "1.30.0"
RUNTIME_FILES = (
    "ort.wasm.min.mjs",
    "ort-wasm-simd-threaded.mjs",
    "ort-wasm-simd-threaded.wasm",
)
RUNTIME_PATH = Path("node_modules", "onnxruntime-web", "dist")  # below where npm installed


def run_page(onnx_path: Path, web_runtime: Path | None, output: Path, device: str) -> None:
    """Checks the file and writes the folder.

    Raises:
        UserError: the detector or onnxruntime-web is missing or damaged, or the folder holds
            something else.
    """
    from common.onnx_detector import OnnxDetector

    if device not in ("auto", "cpu"):
        remedy = "leave --device out; the page runs on the processor of whoever opens it"
        raise UserError(f"--device {device}", "not supported in the page", remedy)
    OnnxDetector(onnx_path, "cpu", threads=1)
    runtime = find_runtime(web_runtime)
    if output.exists() and (
        not output.is_dir() or (any(output.iterdir()) and not (output / ORT).is_dir())
    ):
        raise UserError(output, "holds something else", "give another --output folder")
    write_page(output, onnx_path, runtime)
    log.info("The page uses onnxruntime-web %s", runtime_version(runtime))
    serve = f"python -m http.server --bind 127.0.0.1 --directory {paths.display(output)} 8000"
    cli.finished([output / name for name in (MODEL, "index.html")], serve)


def write_page(folder: Path, onnx_path: Path, runtime: Path) -> None:
    """Copies the runtime, the detector and the page into a folder, file by file in this order.

    Args:
        runtime: see `find_runtime`.
    """
    sources = {Path(ORT, name): runtime / name for name in RUNTIME_FILES}
    sources |= {Path(MODEL): onnx_path}
    sources |= {Path(name): PAGE / name for name in PAGE_FILES}
    for target, source in sources.items():
        with artifacts.atomic_path(folder / target) as temporary:
            shutil.copyfile(source, temporary)


def find_runtime(given: Path | None) -> Path:
    """The folder with RUNTIME_FILES: `given`, what npm made below it, or below `cache_folder()`.

    Raises:
        UserError: they are not there; the text says how to get them.
    """
    start = cache_folder() if given is None else given
    candidates = (start, start / "dist", start / RUNTIME_PATH)
    for candidate in candidates:
        if all((candidate / name).is_file() for name in RUNTIME_FILES):
            return candidate
    where = "onnxruntime-web" if given is None else given
    raise UserError(where, f"no {RUNTIME_FILES[0]} and what belongs to it", install_command())


def cache_folder() -> Path:
    """Where onnxruntime-web is looked for without --web-runtime."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "onnxruntime-web"


def install_command() -> str:
    return f'npm install --prefix "{cache_folder()}" onnxruntime-web@{TESTED_VERSION}'


def runtime_version(runtime: Path) -> str:
    """As npm's package.json beside the folder tells it."""
    try:
        content = json.loads((runtime.parent / "package.json").read_text(encoding="utf-8"))
        return str(content["version"])
    except (OSError, ValueError, KeyError, TypeError):
        return "of unknown version"


def add_runtime_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--web-runtime",
        type=Path,
        help="folder with onnxruntime-web's files (default: onnxruntime-web in the user's cache)",
    )


def build_parser() -> argparse.ArgumentParser:
    parser = cli.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--onnx-path", type=Path, default=paths.DEPLOYMENT / MODEL, help="the exported file"
    )
    add_runtime_argument(parser)
    cli.add_common_arguments(parser, output=paths.OUTPUTS / "web", output_help="folder to write")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return cli.run(
        lambda: run_page(args.onnx_path, args.web_runtime, args.output, args.device), args
    )


if __name__ == "__main__":
    sys.exit(main())
