"""Which package may import which, held against every import."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "sslmedsam2"

_GROUND = {"errors", "imaging"}
_NEEDS = {"contract", "dicom", "execution", "phantom", "reporting", "weights"}
_METHODS = {"fewshot", "inference", "nnunet"}
ALLOWED = {
    "errors": set(),
    "imaging": {"errors"},
    "contract": _GROUND,
    # Another way to find studies: its series are the contract's.
    "dicom": _GROUND | {"contract"},
    # Where units are computed, not what they are.
    "execution": {"errors"},
    "phantom": _GROUND,
    "reporting": _GROUND,
    "weights": _GROUND,
    # What a model folder holds is the business of weights alone.
    "inference": _GROUND | {"weights"},
    "fewshot": _GROUND | {"weights"},
    "nnunet": _GROUND | {"execution", "weights"},
    "submission": _GROUND | _NEEDS,
    "predict": _GROUND | _NEEDS | {"inference", "submission"},
    "pseudo_label": _GROUND | _NEEDS | {"inference", "fewshot", "predict"},
    "train": _GROUND | _NEEDS | _METHODS | {"submission"},
    "retrain": _GROUND | _NEEDS | _METHODS | {"predict", "pseudo_label", "train", "submission"},
    "doctor": _GROUND | _NEEDS | {"inference", "fewshot", "predict", "pseudo_label"},
    "api": _GROUND | _NEEDS | {"inference", "predict"},
    "serve": _GROUND | {"api", "contract"},
    "cli": None,
}
"""Which packages a package may import; its own modules and the version are free to all, and
everything is to the commands."""
ALLOWED["cli"] = set(ALLOWED) - {"cli"}
FEATURES = ("predict", "pseudo_label", "retrain", "train", "submission", "doctor", "serve")

WITHOUT_TORCH = ("errors", "imaging", "contract", "dicom", "execution", "submission", "cli")
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


@cache
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


def packages_of(modules: set[str], *, package: str) -> set[str]:
    """Return the packages that modules of the package lie in."""
    parts = [name.split(".") for name in modules]
    return {part[1] for part in parts if part[0] == package and len(part) > 1} - {"__version__"}


def package_of(module: Path, *, root: Path) -> str:
    """Return the folder directly below the package, or the name of a module that lies there."""
    return module.relative_to(root).parts[0].removesuffix(".py")


def _modules_of(name: str) -> list[Path]:
    return [path for path in PACKAGE.rglob("*.py") if package_of(path, root=PACKAGE) == name]


def test_every_package_stands_in_the_table():
    packages = {package_of(path, root=PACKAGE) for path in PACKAGE.rglob("*.py")}
    assert packages - {"__init__", "__main__"} == ALLOWED.keys()


def test_imports_never_form_a_circle():
    placed: set[str] = set()
    while placed != ALLOWED.keys():
        ready = {name for name, below in ALLOWED.items() if below <= placed} - placed
        assert ready, f"a circle among {sorted(ALLOWED.keys() - placed)}"
        placed |= ready


@pytest.mark.parametrize("name", ALLOWED)
def test_package_imports_only_what_it_may(name):
    for module in _modules_of(name):
        packages = packages_of(imported_modules(module, root=PACKAGE), package="sslmedsam2")
        assert packages - {name} <= ALLOWED[name], module.relative_to(PACKAGE)


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_package_does_without_torch(name):
    for module in _modules_of(name):
        names = {name.split(".")[0] for name in imported_modules(module, root=PACKAGE)}
        assert not names & TORCH, module.relative_to(PACKAGE)


def test_commands_load_nothing_slow():
    for module in _modules_of("cli"):
        loaded = imported_modules(module, root=PACKAGE, top_level_only=True)
        assert not {name.split(".")[0] for name in loaded} & SLOW_TO_IMPORT, module.name
        assert not packages_of(loaded, package="sslmedsam2") & set(FEATURES), module.name


@pytest.fixture
def sample(tmp_path):
    """A module of another package that imports in every way there is."""
    module = tmp_path / "shop" / "cellar" / "wine.py"
    module.parent.mkdir(parents=True)
    module.write_text(
        "from typing import TYPE_CHECKING\n"
        "import shop.attic.chest as chest\n"
        "from . import beer\n"
        "from ..roof import tiles\n"
        "from .. import gate\n"
        "if TYPE_CHECKING:\n    import torch\n"
        "def late():\n    from shop.kitchen.stove import fire\n"
        "class Rack:\n    import scipy\n"
    )
    return module


def test_imports_are_seen_wherever_they_hide(sample):
    root = sample.parents[1]
    everything = imported_modules(sample, root=root)
    on_load = imported_modules(sample, root=root, top_level_only=True)

    assert packages_of(everything, package="shop") == {"attic", "cellar", "roof", "gate", "kitchen"}
    assert {"torch", "scipy"} <= everything
    assert packages_of(on_load, package="shop") == {"attic", "cellar", "roof", "gate"}
    assert "scipy" in on_load
    assert "torch" not in on_load
