"""Checks what can be checked of the image for a GPU without one, and without a container engine.

`python cuda_checks.py --work FOLDER`, from `scripts/test_image.sh --cuda`. It installs torch's
build for CUDA into FOLDER (a download of 3 GB, 8 GB on the disk), trims it as the image is trimmed,
and imports the project with it. Ends with 1 if any check fails.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "scripts"))

import image_trim  # noqa: E402
from image_checks import CheckSkippedError, carry_out_all, expect  # noqa: E402

TOOLKIT_PARTS = "cublas,cudart,cufft,cufile,cupti,curand,cusolver,cusparse,nvjitlink,nvrtc,nvtx"
"""Of NVIDIA's toolkit, what torch asks for."""
OF_THE_DRIVER = {"libcuda.so.1", "libnvidia-ml.so.1"}
OLDEST_ARCHITECTURE = "sm_75"
"""docs/container.md names it: Turing."""
LARGEST_MB = 4_000
"""Of torch and CUDA's libraries, trimmed."""

IMPORTS = """
import json, torch
from torch import nn
import sslmedsam2.nnunet.trainer
from sslmedsam2.fewshot.checkpoint import build_hiera_tiny
build_hiera_tiny(512)
layer = nn.Conv3d(1, 1, 3)
optimizer = torch.optim.AdamW(layer.parameters(), fused=True)
layer(torch.zeros(1, 1, 4, 4, 4)).sum().backward()
optimizer.step()
print(json.dumps({
    "file": torch.__file__, "version": torch.__version__, "cuda": torch.version.cuda,
    "architectures": torch._C._cuda_getArchFlags().split(), "gpu": torch.cuda.is_available(),
}))
"""

DRIVER_THAT_FAILS = r"""
#include <stdlib.h>
#include <string.h>
static int fail(void) { return atoi(getenv("CUDA_ERROR")); }
int cuInit(unsigned flags) { return fail(); }
int cuDriverGetVersion(int *version) { *version = 13000; return 0; }
int cuGetProcAddress_v2(const char *name, void **function, int version,
                        unsigned long long flags, int *status) {
    *function = (void *)fail;
    if (!strcmp(name, "cuDriverGetVersion")) *function = (void *)cuDriverGetVersion;
    if (!strcmp(name, "cuGetProcAddress")) *function = (void *)cuGetProcAddress_v2;
    if (status) *status = 0;
    return 0;
}
"""
"""A libcuda.so.1 that does not start."""
START = """
from sslmedsam2.inference import device
device.driver_version = lambda: "580.0"
print(device.gpu_fault("cuda"))
"""
WORDS_OF_ERRORS = {
    "802": "Start nvidia-fabricmanager",
    "803": "restart the host",
    "804": "Update the driver",
    "999": "CUDA unknown error",
    "100": "shows no GPU",
}


class Bench:
    """The folder that torch is installed into, and the pins."""

    def __init__(self, work: Path) -> None:
        """Take the folder of all checks."""
        self.work = work
        self.site = work / "cuda-site"
        self.constraints = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8")
        self.figures: dict[str, object] = {}

    def pin(self, package: str) -> str:
        """Return the pinned version, also of several the first."""
        match = re.search(rf"^{package}==([^ ;\n]+)", self.constraints, re.MULTILINE)
        assert match is not None
        return match[1]

    def pip(self, *args: str, constraints: str | None = None) -> None:
        """Call pip with the pins; raise CheckFailedError with what it says."""
        file = self.work / "constraints.txt"
        file.write_text(self.constraints if constraints is None else constraints, encoding="utf-8")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--constraint", str(file)]
        done = subprocess.run([*command, *args], capture_output=True, text=True, check=False)
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        expect(done.returncode == 0, errors[-1] if errors else done.stderr.strip()[-300:])

    def resolved(self, *requirements: str, constraints: str | None = None) -> dict[str, str]:
        """Return what pip would install, by name."""
        report = self.work / "resolved.json"
        options = ("--dry-run", "--ignore-installed", "--report", str(report))
        self.pip(*options, *requirements, constraints=constraints)
        items = json.loads(report.read_text(encoding="utf-8"))["install"]
        found = (item["metadata"] for item in items)
        return {re.sub(r"[-_.]+", "-", one["name"]).lower(): one["version"] for one in found}


def pins_for_cuda_126(constraints: str) -> str:
    """Return the pins of an image for CUDA 12.6, as the Dockerfile makes them."""
    kept = re.sub(r"(?m)^cuda-(bindings|toolkit)==.*\n", "", constraints)
    return kept + (REPOSITORY / "constraints-cuda12.6.txt").read_text(encoding="utf-8")


def check_resolution(bench: Bench) -> str:
    # === leaves out builds such as 2.13.0+cpu, which == would take from a folder of this machine.
    found = bench.resolved(f"torch==={bench.pin('torch')}")
    libraries = [name for name in found if name.startswith("nvidia-")]
    expect(bool(libraries), f"no CUDA library among {sorted(found)}")
    loose = [name for name in found if not re.search(rf"(?mi)^{name}==", bench.constraints)]
    expect(not loose, f"not pinned: {loose}")
    return f"{len(found)} packages, {len(libraries)} of NVIDIA's, each pinned"


def check_older_cuda(bench: Bench) -> str:
    pins = pins_for_cuda_126(bench.constraints)
    found = bench.resolved(f"cuda-toolkit[{TOOLKIT_PARTS}]", "cuda-bindings", constraints=pins)
    expect(found["cuda-toolkit"].startswith("12.6"), f"{found}")
    loose = [name for name in found if f"{name}=={found[name]}" not in pins]
    expect(not loose, f"not pinned: {loose}")
    return f"{len(found)} packages, each pinned; torch's own build for it was not looked for"


def check_installation(bench: Bench) -> str:
    if not (bench.site / "torch").is_dir():
        bench.pip("--target", str(bench.site), f"torch==={bench.pin('torch')}")
    image_trim.PACKAGES = bench.site
    before = image_trim.size_mb(bench.site)
    for patterns in image_trim.UNOPENED.values():
        image_trim.remove(patterns)
    left = image_trim.size_mb(bench.site)
    bench.figures |= {"cuda_site_mb": round(left), "cuda_trimmed_mb": round(before - left)}
    expect(left < LARGEST_MB, f"{left:.0f} MB are more than {LARGEST_MB}")
    return f"{left:.0f} MB are left of torch and CUDA's libraries, {before - left:.0f} MB trimmed"


def check_links(bench: Bench) -> str:
    libraries = sorted((bench.site / "torch" / "lib").glob("*.so*"))
    expect(bool(libraries), "torch is not installed")
    for library in libraries:
        done = subprocess.run(["ldd", library], capture_output=True, text=True, check=False)
        missing = set(re.findall(r"(\S+) => not found", done.stdout)) - OF_THE_DRIVER
        expect(not missing, f"{library.name} misses {sorted(missing)}")
    return f"{len(libraries)} libraries of torch find all that they are linked with"


def check_imports(bench: Bench) -> str:
    environment = {**os.environ, "PYTHONPATH": f"{bench.site}:{REPOSITORY}"}
    command = [sys.executable, "-c", IMPORTS]
    done = subprocess.run(
        command, env=environment, cwd=bench.work, capture_output=True, text=True, check=False
    )
    expect(done.returncode == 0, done.stderr.strip()[-300:])
    seen = json.loads(done.stdout.splitlines()[-1])
    expect(Path(seen["file"]).is_relative_to(bench.site), f"imported {seen['file']}")
    toolkit = bench.pin("cuda-toolkit")
    expect(toolkit.startswith(str(seen["cuda"])), f"CUDA {seen['cuda']}, pinned {toolkit}")
    expect(OLDEST_ARCHITECTURE in seen["architectures"], f"{seen['architectures']}")
    bench.figures["architectures"] = seen["architectures"]
    return (
        f"trainer, SAM2 and a step with torch {seen['version']}, CUDA {seen['cuda']},"
        f" {' '.join(seen['architectures'])}"
    )


def check_start(bench: Bench) -> str:
    compiler = shutil.which("cc")
    if compiler is None:
        raise CheckSkippedError("no C compiler makes the driver that fails")
    folder = bench.work / "driver"
    folder.mkdir(exist_ok=True)
    command = [compiler, "-shared", "-fPIC", "-x", "c", "-", "-o", str(folder / "libcuda.so.1")]
    subprocess.run(command, input=DRIVER_THAT_FAILS, text=True, check=True)
    environment = {
        **os.environ,
        "PYTHONPATH": f"{bench.site}:{REPOSITORY}",
        "LD_LIBRARY_PATH": str(folder),
    }
    for error, words in WORDS_OF_ERRORS.items():
        done = subprocess.run(
            [sys.executable, "-c", START],
            env={**environment, "CUDA_ERROR": error}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        expect(words in done.stdout, f"{error}: {done.stdout.strip()} {done.stderr[-200:]}")
    return f"errors {', '.join(WORDS_OF_ERRORS)} are reported"


CHECKS: dict[str, Callable[[Bench], str]] = {
    "packages": check_resolution,
    "packages for CUDA 12.6": check_older_cuda,
    "size": check_installation,
    "links": check_links,
    "imports, architectures": check_imports,
    "CUDA that does not start": check_start,
}


def main() -> None:
    """Make every check, then the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", help="Make only the checks whose names hold this.")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    bench = Bench(options.work.resolve())
    sys.exit(carry_out_all(CHECKS, bench, only=options.only, file=bench.work / "cuda.json"))


if __name__ == "__main__":
    main()
