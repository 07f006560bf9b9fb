"""Used while the image is built: checks which torch was installed, removes what no run opens.

`python image_trim.py --torch cpu|cuda`, with the interpreter of the environment that is trimmed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

PACKAGES = Path(sysconfig.get_path("purelib"))

INSTALLERS = ("pip", "setuptools", "wheel")

UNOPENED = {
    "headers, which only a compiler reads": ("torch/include", "torch/share", "openvino/include"),
    "tests of torch and the programs that run them": (
        "torch/test",
        "torch/bin/[!t]*",
        "torch/bin/test_*",
    ),
    "Triton, which needs a compiler": ("triton", "triton-*.dist-info"),
    # By `readelf -d`, no library of torch asks for these. cuDNN's stay: it opens them as it needs.
    "CUDA libraries that no other is linked with": (
        "nvidia/**/libcusolverMg.so*",
        "nvidia/**/libnvrtc*.alt.so*",
        "nvidia/**/libnvperf*.so*",
    ),
    "OpenVINO for devices other than the CPU": (
        "openvino/libs/libopenvino_intel_[gn]pu_*",
        "openvino/libs/cache.json",
    ),
    "tests of other packages, with their data": (
        "**/tests",
        "pydicom/data/charset_files",
        "pydicom/data/test_files",
    ),
}


def main() -> None:
    """Check, then trim, and say what each removal freed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--torch", choices=["cpu", "cuda"], required=True)
    check_torch(parser.parse_args().torch)
    for what, patterns in UNOPENED.items():
        print(f"{remove(patterns):6.1f} MB  {what}")
    before = size_mb(PACKAGES)
    uninstall = [sys.executable, "-m", "pip", "uninstall", "--yes", "--quiet", *INSTALLERS]
    subprocess.run(uninstall, check=True)
    print(f"{before - size_mb(PACKAGES):6.1f} MB  {', '.join(INSTALLERS)}")
    print(f"{size_mb(PACKAGES):6.1f} MB  are left")


def check_torch(wanted: str) -> None:
    """Refuse another build of torch than the one that was wanted, or one for another CUDA."""
    import torch

    built_for = torch.version.cuda
    if (built_for is None) != (wanted == "cpu"):
        found = f"for CUDA {built_for}" if built_for else "for the CPU"
        sys.exit(f"image_trim: torch {torch.__version__} is built {found}, not for {wanted}")
    in_base = os.environ.get("CUDA_VERSION", "")
    if built_for and in_base and in_base.split(".")[:2] != built_for.split(".")[:2]:
        sys.exit(
            f"image_trim: BASE_IMAGE has CUDA {in_base}, torch {torch.__version__} is built for"
            f" {built_for}: choose nvidia/cuda:{built_for}.<n>-base-ubuntu<version>"
        )


def remove(patterns: tuple[str, ...]) -> float:
    """Remove what matches below the packages; return how many MB that freed."""
    freed = 0.0
    for path in [found for pattern in patterns for found in PACKAGES.glob(pattern)]:
        if path.exists():
            freed += size_mb(path)
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
    return freed


def size_mb(path: Path) -> float:
    """Return the size of a file, or of all files below a folder."""
    return sum(file.lstat().st_size for file in _files(path)) / 1e6


def _files(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    for folder, _, names in os.walk(path):
        yield from (Path(folder, name) for name in names)


if __name__ == "__main__":
    main()
