"""Which files of the project the package needs: what its scripts import, and what that imports.

The package is a part of this repository with the same import paths, so nothing in it is a second
version. Its files are found by following the imports in the sources, those inside functions too;
a new module is shipped as soon as a shipped one imports it.

What cannot be imported without PyTorch stays behind: a module that imports one of LEFT_BEHIND when
it is itself imported, or another module that does. Shipped modules name these in functions only,
on ways that an ONNX file does not take.
"""

import ast
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from common import paths

DETECT = Path(__file__).resolve().parents[1] / "package" / "detect.py"
SERVE = DETECT.with_name("serve.py")  # needs more installed packages than DETECT
LEFT_BEHIND = frozenset({"torch", "torchvision"})


@dataclass(frozen=True)
class Imports:
    """Dotted names that a module imports: `at_import`, and `later` in its functions."""

    at_import: frozenset[str]
    later: frozenset[str]


def shipped_files(*entries: Path) -> list[Path]:
    """The modules that `entries` need, without these, and the files beside them that they name.

    Without any entry those of all scripts of the package.
    """
    waiting = [*(entries or (DETECT, SERVE))]
    known, modules = set(waiting), set[Path]()
    while waiting:
        imported = imports_of(waiting.pop())
        found = set(project_files(imported.at_import | imported.later)) - modules - known
        new = [module for module in sorted(found) if not needs_torch(module)]
        modules.update(new)
        waiting += new
    return sorted({*modules, *(file for module in modules for file in _data_files(module))})


def third_party(files: Iterable[Path]) -> set[str]:
    """Top-level names of the packages that these modules import, LEFT_BEHIND without."""
    own = {path.name for path in paths.ROOT.iterdir()}
    names = {
        name.split(".")[0]
        for file in files
        if file.suffix == ".py"
        for name in imports_of(file).at_import | imports_of(file).later
    }
    return names - own - LEFT_BEHIND - sys.stdlib_module_names


def needs_torch(module: Path) -> bool:
    """Whether the module cannot be imported without one of LEFT_BEHIND."""
    return bool(LEFT_BEHIND & {name.split(".")[0] for name in _loaded_with(module)})


def _loaded_with(module: Path) -> set[str]:
    """Every name that is imported when the module is, also by other modules of the project."""
    names: set[str] = set()
    seen, waiting = {module}, [module]
    while waiting:
        imported = imports_of(waiting.pop()).at_import
        names |= imported
        new = set(project_files(imported)) - seen
        seen |= new
        waiting += new
    return names


def project_files(names: Iterable[str]) -> Iterator[Path]:
    """The modules of the project among dotted names; `a.b.C` may stand for C in a/b.py."""
    for name in names:
        path = paths.ROOT.joinpath(*name.split(".")).with_suffix(".py")
        if path.is_file():
            yield path


@cache
def imports_of(module: Path) -> Imports:
    """What a source file imports; blocks for type checkers are not looked at."""
    at_import: set[str] = set()
    later: set[str] = set()

    def visit(node: ast.AST, names: set[str]) -> None:
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in _executed(node):
            visit(child, later if inside else names)

    visit(ast.parse(module.read_text(encoding="utf-8")), at_import)
    return Imports(frozenset(at_import), frozenset(later))


def _executed(node: ast.AST) -> Iterator[ast.AST]:
    """The children of a node, without those that only type checkers read."""
    is_for_types = (
        isinstance(node, ast.If)
        and isinstance(node.test, ast.Name)
        and node.test.id == "TYPE_CHECKING"
    )
    yield from node.orelse if is_for_types else ast.iter_child_nodes(node)  # type: ignore[attr-defined]


def _data_files(module: Path) -> Iterator[Path]:
    """Files beside a module that it names by a string, such as a page that it serves."""
    tree = ast.parse(module.read_text(encoding="utf-8"))
    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    for file in module.parent.iterdir():
        if file.name in texts and file.is_file() and file.suffix != ".py":
            yield file
