"""What the command lines of detect.py and serve.py have in common."""

import argparse
from pathlib import Path

from common import cli
from common.cli import UserError
from common.onnx_detector import PROVIDERS
from phase3_tracking.video_detector import CONFIDENCE

REQUIREMENTS, REQUIREMENTS_SERVE = "requirements.txt", "requirements-serve.txt"


def add_detector_arguments(
    parser: argparse.ArgumentParser, model: Path, *, of_confidence: str = ""
) -> None:
    """Adds --model, --confidence, --classes, --device and --batch-size.

    Args:
        model: the default.
        of_confidence: what else to say of --confidence.
    """
    group = parser.add_argument_group("detector")
    group.add_argument("--model", type=Path, default=model, help="another .onnx file")
    group.add_argument(
        "--confidence",
        type=cli.fraction,
        default=CONFIDENCE,
        help=f"smallest confidence kept{of_confidence}",
    )
    group.add_argument(
        "--classes", type=cli.names, help="comma separated names or category ids to keep"
    )
    group.add_argument(
        "--device",
        choices=PROVIDERS,
        default="auto",
        help="cuda is an error where it cannot be used; auto then takes the CPU",
    )
    group.add_argument(
        "--batch-size",
        type=cli.positive_int,
        help="images for each inference (default: the best that was measured, see README.md)",
    )


def check_model(path: Path) -> None:
    """Raises UserError unless it is called like an exported detector."""
    if path.suffix.lower() != ".onnx":
        raise UserError(path, "is no .onnx file", "give model.onnx or another of its kind")


def missing_module(
    error: ModuleNotFoundError, folder: Path, listed_in: str = REQUIREMENTS
) -> UserError:
    """What to do about a module that cannot be imported.

    Args:
        folder: of the package.
        listed_in: the file that names what to install.
    """
    name = str(error.name)
    if (folder / name.split(".")[0]).is_dir():
        return UserError(name, "is missing", "see what else: detect.py --verify")
    return UserError(name, "is not installed", f"run: pip install -r {listed_in}")
