"""Runs a small command again and again, each time with another call that writes failing.

Started with the library of ``faults.c`` preloaded::

    LD_PRELOAD=faults.so python fault_runs.py COMMAND SCRATCH RESULT.json [STEP]

For each call below the output folder and each of three errors, or for one call of every STEP and
one error, COMMAND (predict, pseudo-label, retrain) is run with that call failing, then as it is.
What is lost, if anything, stands in the result. ENOSPC stays: a disk that is full remains so until
the run ends. With ``sites`` as STEP, one call of each place fails with each error, where a place is
the operation, the name of the file without its numbers, and the lines of this package that led to
it: the 36 times that one line opens the same data set are one place.

All fail once, far apart ones first, before any fails with its second error. Started again
with the same RESULT.json, it goes on. ``retrain`` draws no charts and runs its networks with torch,
which halves its time; the files that it writes are the same ones.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import hashlib
import importlib
import json
import math
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from retrain_samples import write_labelled, write_unlabelled
from tiny_models import bright_tissue_model
from tiny_sam2 import write_tiny_compact
from tiny_scans import write_scan

ERRORS = {"ENOSPC": True, "EIO": False, "EACCES": False}
"""Whether all later calls fail as well."""
_MASKS_AND_WEIGHTS = (".nii.gz", ".pth", ".csv", "outcome.json", "selection.json")
_LIBRARY = ctypes.CDLL(None)
IMPORTED = {
    "predict": ("sslmedsam2.cli.main", "sslmedsam2.predict.pipeline", "openvino", "PIL.Image"),
    "pseudo-label": ("sslmedsam2.cli.main", "sslmedsam2.pseudo_label.pipeline"),
    "train": ("nnunetv2.training.nnUNetTrainer.nnUNetTrainer", "sslmedsam2.train.pipeline"),
    "retrain": ("nnunetv2.training.nnUNetTrainer.nnUNetTrainer", "sslmedsam2.retrain.pipeline"),
}
_SETTLED_CODES = {"predict": {1, 3}, "pseudo-label": {1}, "retrain": {1, 2, 4}}


def make_inputs(kind: str, root: Path) -> list[str]:
    """Write what the command reads, and return the command; ``{out}`` is its output folder."""
    root.mkdir(parents=True)
    if kind == "predict":
        for case in ("0001-A", "0002-A"):
            write_scan(root / "in" / case / "GED4.nii.gz")
        model = bright_tissue_model(root / "model")
        return [
            *("predict", "--input", str(root / "in"), "--output", "{out}", "--model", str(model)),
            *("--device", "cpu", "--resume"),
        ]
    cases = ("1001-A-S1", "1002-A-S1", "1003-A-S1", "1004-A-S1")
    for seed, case in enumerate(cases if kind == "train" else cases[:2], start=1):
        write_labelled(root / "labelled" / case, seed=seed)
    write_unlabelled(root / "unlabelled" / "0011-B1", seed=11)
    if kind == "train":
        return [
            *("train", "--data", str(root / "labelled"), "--work-dir", "{out}/work"),
            *("--device", "cpu", "--folds", "2", "--epochs", "2", "--final-epochs", "2"),
            *("--iterations-per-epoch", "2", "--weights-out", "{out}/weights", "--name", "tiny"),
            *("--training-data", "computed", "--licence", "Apache-2.0", "--preset", "compact"),
        ]
    sam2 = write_tiny_compact(root / "sam2.safetensors")
    if kind == "pseudo-label":
        return [
            *("pseudo-label", "--support", str(root / "labelled"), "--device", "cpu", "--resume"),
            *("--query", str(root / "unlabelled"), "--output", "{out}", "--sam2", str(sam2)),
        ]
    return [
        *("retrain", "--labelled", str(root / "labelled"), "--work-dir", "{out}/work"),
        *("--unlabelled", str(root / "unlabelled"), "--sam2", str(sam2), "--device", "cpu"),
        *("--folds", "2", "--epochs", "1", "--iterations-per-epoch", "1", "--rounds", "1"),
        *("--weights-out", "{out}/weights", "--force"),
    ]


def in_child(work: Callable[[], int], log: Path) -> int:
    """Run ``work`` in a fork, its output in ``log``, and return its exit code; -1 if it died."""
    _, status = os.waitpid(start_child(work, log), 0)
    return os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else -1


def start_child(work: Callable[[], int], log: Path) -> int:
    """Run ``work`` in a fork, its output in ``log``, and return the number of its process."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            with log.open("w") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            import torch

            torch.set_num_threads(1)
            code = work()
        except BaseException as error:
            os.write(2, f"Traceback: {type(error).__name__}: {error}\n".encode())
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return child


def call_cli(command: list[str], out: Path) -> int:
    """Run a command in this process with a tiny network to train, and return its exit code."""
    from tiny_training import PRESET

    from sslmedsam2.cli.main import main
    from sslmedsam2.nnunet import plans as presets

    presets.PRESETS = {**presets.PRESETS, "compact": PRESET}
    return main([part.replace("{out}", str(out)) for part in command])


def run(command: list[str], out: Path, *, call: int = 0, error: str = "EIO") -> tuple[int, str]:
    """Run a command with the ``call``-th call failing, and return its exit code and its output."""
    log = out.with_suffix(".log")

    def work() -> int:
        out.mkdir(exist_ok=True)
        number = getattr(errno, error)
        trace = out.with_suffix(".calls").open("w")
        _LIBRARY.faults_log(trace.fileno())
        _LIBRARY.faults_arm(str(out).encode(), call, number, int(ERRORS[error] and call > 0))
        code = call_cli(command, out)
        _LIBRARY.faults_arm(b"", 0, 0, 0)
        out.with_suffix(".modules").write_text("\n".join(sys.modules))
        return int(code)

    code = in_child(work, log)
    return code, log.read_text()


def places(out: Path) -> dict[int, str]:
    """Return where each call of the last run was made, by its number, from the log of ``faults.c``.

    Without the lines of Python, if this interpreter cannot tell them.
    """
    found = {}
    trace = out.with_suffix(".calls").read_text()
    for call in re.split(r"^call (?=\d+ )", trace, flags=re.MULTILINE)[1:]:
        number, operation, path = call.splitlines()[0].split(" ", 2)
        name = re.sub(r"\d+", "#", re.sub(r"[0-9a-f]{8,}", "#", Path(path).name))
        lines = re.findall(r'/sslmedsam2/(?!cli/)([\w/]+)\.py", line (\d+)', call)
        way = " < ".join(f"{module}:{line}" for module, line in lines)
        found[int(number)] = f"{operation} {name} ({way})"
    return dict(sorted(found.items()))


def results(out: Path) -> dict[str, str]:
    """Return the hashes of what the command is run for."""
    return {
        path.relative_to(out).as_posix(): _digest(path)
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name.endswith(_MASKS_AND_WEIGHTS) and _counts(path)
    }


def _counts(path: Path) -> bool:
    hidden = any(part.startswith(".") or ".replaced-" in part for part in path.parts)
    # The checkpoints of a training hold its clock times; what is frozen of them does not.
    return not hidden and "results" not in path.parts


def _digest(path: Path) -> str:
    if path.name == "pseudo_labels.csv":
        # All but the seconds.
        return "\n".join(",".join(row.split(",")[:8]) for row in path.read_text().splitlines())
    if path.name == "liver_volumes.csv":
        # A mask that was kept is as good as one that is made.
        return path.read_text().replace(",skipped_resume,", ",ok,")
    if path.name == "selection.json":
        return json.dumps(json.loads(path.read_text())["choices"])
    return hashlib.sha256(path.read_bytes()).hexdigest()


def problems_after_fault(
    out: Path, code: int, text: str, *, wanted: dict[str, str], kind: str
) -> list[str]:
    """Return what is wrong with how a disturbed run ended."""
    found = []
    if "Traceback" in text or code in (-1, 99):
        found.append(f"it ended with code {code} and a traceback: {text[-300:]}")
    if code != 0 and code not in _SETTLED_CODES[kind]:
        found.append(f"its exit code is {code}")
    if code != 0 and not any("error" in line.lower() for line in text.splitlines()):
        found.append("it failed without a line that says so")
    for name, digest in results(out).items():
        if name.endswith((".nii.gz", ".pth")) and digest != wanted.get(name):
            found.append(f"{name} is another than in an undisturbed run")
    for path in out.rglob("*.json"):
        with contextlib.suppress(OSError):
            try:
                json.loads(path.read_text())
            except ValueError:
                found.append(f"{path.relative_to(out)} is no JSON")
    return found


def main() -> None:
    """Disturb a command at each call, and write what came of it."""
    kind, scratch, result = sys.argv[1], Path(sys.argv[2]).resolve(), Path(sys.argv[3])
    step = sys.argv[4] if len(sys.argv) > 4 else "1"
    # Once, before all forks.
    for name in IMPORTED[kind]:
        importlib.import_module(name)
    if kind == "retrain":
        make_cheaper()

    command = make_inputs(kind, scratch / "inputs")
    whole = scratch / "whole"
    code, text = run(command, whole)
    assert code == 0, text
    wanted, where = results(whole), places(whole)
    load_before_forks(whole)
    calls = len(where)
    assert any(name.endswith((".nii.gz", ".pth")) for name in wanted), wanted
    record: dict[str, Any] = {"calls": calls, "places": len(set(where.values())), "done": {}}
    if result.is_file():
        earlier = json.loads(result.read_text())
        assert earlier["calls"] == calls, "the earlier result is of another program"
        record = earlier
    if step == "sites":
        # The last of each: by then a file has been written in part.
        chosen, step = list({place: number for number, place in where.items()}.values()), "1"
    else:
        chosen = list(where)
    for index, error in faults(len(chosen), int(step)):
        number = chosen[index - 1]
        at = f"{error} at call {number}, {where[number]}"
        if at in record["done"]:
            continue
        out = scratch / "out"
        shutil.rmtree(out, ignore_errors=True)
        code, text = run(command, out, call=number, error=error)
        found = problems_after_fault(out, code, text, wanted=wanted, kind=kind)
        if (hit := places(out).get(number)) != where[number]:
            record.setdefault("elsewhere", []).append(f"{at}: {hit}")
        code, text = run(command, out)
        if code != 0:
            found.append(f"the same command afterwards ended with {code}: {text[-300:]}")
        elif (now := results(out)) != wanted:
            names = sorted(n for n in now.keys() | wanted.keys() if now.get(n) != wanted.get(n))
            found.append(f"the same command afterwards gave another {', '.join(names)}")
        record["done"][at] = found
        record["calls_failed"] = len(record["done"])
        record["runs"] = 2 * len(record["done"])
        record["losses"] = [f"{at}: {one}" for at, all_ in record["done"].items() for one in all_]
        partial = result.with_suffix(".partial")
        partial.write_text(json.dumps(record, indent=1) + "\n")
        partial.replace(result)


def faults(calls: int, step: int) -> Iterator[tuple[int, str]]:
    """Yield each call with each error, or one call of every ``step`` with one of them."""
    names = list(ERRORS)
    if step > 1:
        chosen = [min(calls, first + step // 2) for first in range(1, calls + 1, step)]
        yield from ((number, names[number % 3]) for number in chosen)
        return
    stride = next(n for n in range(max(1, calls * 3 // 8), calls + 2) if math.gcd(n, calls) == 1)
    for turn in range(len(names)):
        for i in range(calls):
            number = i * stride % calls + 1
            yield number, names[(number + turn) % 3]


def load_before_forks(out: Path) -> None:
    """Import what a run imported late, and read its pages' templates: each fork would again."""
    from sslmedsam2.reporting import page

    for name in out.with_suffix(".modules").read_text().splitlines():
        # Some can only be imported by others, or are blocked.
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    for template in page._templates().list_templates():
        page._templates().get_template(template)
    # A collection in a fork would copy all of it.
    gc.freeze()


def make_cheaper() -> None:
    """Leave out of ``retrain`` what costs time and decides nothing about files."""
    from nnunetv2.training.logging.nnunet_logger import MetaLogger

    from sslmedsam2.reporting import page
    from sslmedsam2.retrain import estimate

    def small_png(_logger: Any, folder: str) -> None:
        Path(folder, "progress.png").write_bytes(b"no plot")

    MetaLogger.plot_progress_png = small_png
    page.svg = lambda _chart: "<svg></svg>"
    estimate.measured_speedup = lambda: 1.0
    # Its threads would not live on in the forks.
    sys.modules["sslmedsam2.inference.openvino_backend"] = None  # type: ignore[assignment]


if __name__ == "__main__":
    main()
