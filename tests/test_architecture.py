"""The arrows between the rooms of the package, held against every import in it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "sslmedsam2"

_GROUND = {"errors", "imaging"}
_MIDDLE = {
    "contract",
    "dicom",
    "evaluation",
    "fewshot",
    "inference",
    "phantom",
    "refine",
    "reporting",
    "running",
    "weights",
}
ALLOWED = {
    "errors": set(),
    "imaging": {"errors"},
    "contract": _GROUND,
    # Another way to find studies: its series are the contract's.
    "dicom": _GROUND | {"contract"},
    "evaluation": _GROUND,
    "phantom": _GROUND,
    "reporting": _GROUND,
    "weights": _GROUND,
    # A model folder's layout and checkpoints are the business of weights alone.
    "inference": _GROUND | {"weights"},
    "fewshot": _GROUND | {"weights"},
    "refine": _GROUND | {"weights", "inference"},
    # Who does the work, not what it is.
    "running": {"errors"},
    "pipelines": _GROUND | _MIDDLE,
    "api": _GROUND | _MIDDLE | {"pipelines"},
    "cli": _GROUND | _MIDDLE | {"pipelines"},
}
"""Which rooms a room may import; its own modules and the package's version are free to all."""

WITHOUT_TORCH = ("errors", "imaging", "contract", "dicom", "running", "cli")
TORCH = {"torch", "nnunetv2", "batchgenerators", "batchgeneratorsv2"}
SLOW_TO_IMPORT = TORCH | {
    "SimpleITK",
    "dask",
    "dask_jobqueue",
    "distributed",
    "highdicom",
    "matplotlib",
    "nibabel",
    "openvino",
    "pydicom",
    "sam2",
    "scipy",
    "skimage",
}


def imported_modules(module: Path, *, root: Path, top_level_only: bool = False) -> set[str]:
    """Return the absolute names of what a module imports, anywhere in it or when it is loaded.

    Each ``from a import b`` gives both ``a`` and ``a.b``, since ``b`` may be a module.
    """
    found = set()
    tree = ast.parse(module.read_text(encoding="utf-8"))
    for node in _statements_on_load(tree) if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = _absolute_base(node, module, root=root)
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return found


def _absolute_base(node: ast.ImportFrom, module: Path, *, root: Path) -> str:
    if not node.level:
        return node.module or ""
    package = module.relative_to(root.parent).parts[: -node.level]
    return ".".join([*package, *([node.module] if node.module else [])])


def _statements_on_load(node: ast.AST) -> Iterator[ast.AST]:
    """Walk what runs when a module is loaded: not functions, nor what is for type checkers."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from _statements_on_load(child)


def rooms_of(modules: set[str], *, package: str) -> set[str]:
    """Return the rooms that modules of the package lie in."""
    parts = [name.split(".") for name in modules]
    return {part[1] for part in parts if part[0] == package and len(part) > 1} - {"__version__"}


def room_of(module: Path, *, root: Path) -> str:
    """Return the folder directly below the package, or the name of a module that lies there."""
    return module.relative_to(root).parts[0].removesuffix(".py")


def _modules_of(room: str) -> list[Path]:
    return [path for path in PACKAGE.rglob("*.py") if room_of(path, root=PACKAGE) == room]


def test_every_room_stands_in_the_table():
    rooms = {room_of(path, root=PACKAGE) for path in PACKAGE.rglob("*.py")}
    assert rooms - {"__init__", "__main__"} == ALLOWED.keys()


def test_arrows_never_lead_in_a_circle():
    placed: set[str] = set()
    while placed != ALLOWED.keys():
        ready = {room for room, below in ALLOWED.items() if below <= placed} - placed
        assert ready, f"a circle among {sorted(ALLOWED.keys() - placed)}"
        placed |= ready


@pytest.mark.parametrize("room", ALLOWED)
def test_room_imports_only_what_lies_below(room):
    for module in _modules_of(room):
        rooms = rooms_of(imported_modules(module, root=PACKAGE), package="sslmedsam2")
        assert rooms - {room} <= ALLOWED[room], module.relative_to(PACKAGE)


@pytest.mark.parametrize("room", WITHOUT_TORCH)
def test_room_does_without_torch(room):
    for module in _modules_of(room):
        names = {name.split(".")[0] for name in imported_modules(module, root=PACKAGE)}
        assert not names & TORCH, module.relative_to(PACKAGE)


def test_commands_load_nothing_slow():
    for module in _modules_of("cli"):
        loaded = imported_modules(module, root=PACKAGE, top_level_only=True)
        assert not {name.split(".")[0] for name in loaded} & SLOW_TO_IMPORT, module.name
        assert "pipelines" not in rooms_of(loaded, package="sslmedsam2"), module.name


@pytest.fixture
def sample(tmp_path):
    """A module of another package that imports in every way there is."""
    module = tmp_path / "house" / "cellar" / "wine.py"
    module.parent.mkdir(parents=True)
    module.write_text(
        "from typing import TYPE_CHECKING\n"
        "import house.attic.chest as chest\n"
        "from . import beer\n"
        "from ..roof import tiles\n"
        "from .. import gate\n"
        "if TYPE_CHECKING:\n    import torch\n"
        "def late():\n    from house.kitchen.stove import fire\n"
        "class Rack:\n    import scipy\n"
    )
    return module


def test_imports_are_seen_wherever_they_hide(sample):
    root = sample.parents[1]
    everything = imported_modules(sample, root=root)
    on_load = imported_modules(sample, root=root, top_level_only=True)

    assert rooms_of(everything, package="house") == {"attic", "cellar", "roof", "gate", "kitchen"}
    assert {"torch", "scipy"} <= everything
    assert rooms_of(on_load, package="house") == {"attic", "cellar", "roof", "gate"}
    assert "scipy" in on_load
    assert "torch" not in on_load
