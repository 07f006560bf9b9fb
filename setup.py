"""Build of the wheel: setuptools as ``pyproject.toml`` says, with the weights in the package.

A clone, an editable install and the container image read the folder ``weights/`` itself.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

WEIGHTS = Path("weights")
FETCHED = WEIGHTS / "sam2"
"""Written by ``weights fetch``: other people's files, under other terms."""


class BuildWithWeights(build_py):
    """Copies ``weights/`` to ``sslmedsam2/weights/included/``, where `locate` looks first."""

    def run(self) -> None:
        """Copy the code as setuptools does, then the weights."""
        super().run()
        if self.editable_mode:
            return
        for source, target in self._copies().items():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """Name the copies too, so that setuptools records them."""
        copies = [] if self.editable_mode else [str(path) for path in self._copies().values()]
        return [*super().get_outputs(include_bytecode), *copies]

    def _copies(self) -> dict[Path, Path]:
        included = Path(self.build_lib) / "sslmedsam2" / "weights" / "included"
        files = sorted(path for path in WEIGHTS.rglob("*") if path.is_file())
        return {
            path: included / path.relative_to(WEIGHTS)
            for path in files
            if FETCHED not in path.parents
        }


setup(cmdclass={"build_py": BuildWithWeights})
