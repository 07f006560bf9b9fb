"""Counts that show what the program withstands: mutated files, kills, long runs, other forms.

    python benchmarks/hardening.py --part kills --units 20 --seed 19 --rows kills.jsonl
    python benchmarks/hardening.py --rows kills.jsonl --json benchmarks/results/hardening.json

A part consists of units, each a line of ``--rows`` once it is done; a unit that stands there
is not run again. Without ``--units`` only the sums are made. ``--small`` runs some of each part.
``--earlier FILE.json`` adds sums whose rows are gone; the dates and machines of both are kept.

fuzz: mutated files through each reader (``tests/fuzz``), 1000 a unit, 200 of slow formats.
batches: 20 good scans and 30 mutated ones through one ``predict``.
kills: a command that is killed at random times, started again each time, and compared in the end.
double: a command that is started while another one writes to the same folder.
soak: ``predict`` on 100 volumes, again and again in one process.
metamorphic: one volume in 48 orientations, by turns in other formats, voxel types and scalings.
sameness: the same run with 1 and with 2 processors.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import importlib
import itertools
import json
import os
import resource
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from common import ROOT, parser, report

sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

Row = dict[str, Any]

SOAK_VOLUMES = 100
_FUZZ_INPUTS = {
    **dict.fromkeys(("dicom", "plans", "checkpoint", "zip", "nibabel"), 200),
    **dict.fromkeys(("engine", "resume", "page"), 20),
}
_DOCUMENTED_CODES = {0, 1, 2, 3, 4, 130}


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--part", choices=[*PARTS, "all"], default="all")
    arguments.add_argument("--units", type=int, default=0, help="how many more of each part")
    arguments.add_argument("--seed", type=int, default=19)
    arguments.add_argument("--rows", type=Path, help="JSONL file of the units that are done")
    arguments.add_argument("--earlier", type=Path, help="JSON file of sums to add to")
    arguments.add_argument("--small", action="store_true", help="some units of each part")
    arguments.add_argument("--soak-runs", type=int, default=100, help="of 100 volumes each")
    arguments.add_argument("--format", nargs="+", help="of fuzz")
    arguments.add_argument("--command", choices=["predict", "pseudo-label", "train", "retrain"])
    options = arguments.parse_args()
    rows = read_rows(options.rows)
    parts = list(PARTS) if options.part == "all" else [options.part]
    with tempfile.TemporaryDirectory() as scratch:
        for part in parts:
            options.scratch = Path(scratch) / part
            options.scratch.mkdir()
            done = {
                row["unit"] for row in rows if (row["part"], row["seed"]) == (part, options.seed)
            }
            wanted = _SMALL[part] if options.small else options.units
            units = (unit for unit in PARTS[part](options) if unit[0] not in done)
            for name, work in itertools.islice(units, wanted):
                start, cpu = time.monotonic(), _cpu_seconds()
                row = {"part": part, "unit": name, "seed": options.seed, **work()}
                row |= {"seconds": round(time.monotonic() - start, 1)}
                row |= {"cpu_seconds": round(_cpu_seconds() - cpu, 1)}
                rows.append(row)
                print(json.dumps(row), flush=True)
                if options.rows:
                    with options.rows.open("a") as file:
                        file.write(json.dumps(row) + "\n")
    figures = summary(rows)
    if options.earlier:
        figures = with_earlier(figures, json.loads(options.earlier.read_text()))
    report(figures, options.json)
    if any(figures[name] for name in _MUST_BE_ZERO):
        sys.exit(1)


def read_rows(path: Path | None) -> list[Row]:
    if path is None or not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def _cpu_seconds() -> float:
    own, children = (resource.getrusage(who) for who in (0, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


Unit = tuple[str, Callable[[], Row]]


# Mutated files


def fuzz_units(options: Any) -> Iterator[Unit]:
    from fuzz.campaign import run
    from fuzz.formats import FORMATS

    names = options.format or list(FORMATS)
    for number in itertools.count():
        for name in names:
            inputs = _FUZZ_INPUTS.get(name, 1000) // (10 if options.small else 1)

            def work(name: str = name, inputs: int = inputs, first: int = number * 1000) -> Row:
                found = run(name, inputs=inputs, seed=options.seed, first=first)
                faults = [asdict(one) for one in found.findings.values()]
                return {"inputs": found.inputs, "accepted": found.accepted, "faults": faults}

            yield f"{name}/{number}", work


def batch_units(options: Any) -> Iterator[Unit]:
    """Each batch holds 20 good scans, whose masks are known, and 30 mutated inputs."""
    from fuzz.campaign import input_of, write_input
    from fuzz.formats import FORMATS

    goods, bads = (4, 8) if options.small else (20, 30)
    names = ("nifti",) * 6 + ("nibabel", "metaimage", "nrrd", "zip")
    work_dir, model = options.scratch, _tiny_model(options.scratch)
    wanted: dict[str, str] = {}

    def add_goods(folder: Path) -> None:
        for number in range(goods):
            _write_small(folder / f"{number:04}-A", seed=number)

    def run(name: str, fill: Callable[[Path], None]) -> tuple[int, str, Path]:
        shutil.rmtree(work_dir / name, ignore_errors=True)
        (work_dir / name / "in").mkdir(parents=True)
        fill(work_dir / name / "in")
        out = work_dir / name / "out"
        code, text = _predict(work_dir / name / "in", out, model)
        return code, text, out

    def batch(number: int) -> Row:
        if not wanted:
            code, text, out = run("good", add_goods)
            assert code == 0, text
            wanted.update(_masks(out))
            assert len(wanted) == goods
        random = Random(f"{options.seed}/{number}")
        numbers = {f"9{n:03}-B": random.choice(names) for n in range(bads)}

        def fill(folder: Path) -> None:
            add_goods(folder)
            for n, (case, name) in enumerate(numbers.items()):
                index = 10**6 + number * bads + n
                write_input(input_of(FORMATS[name], options.seed, index), folder / case)

        code, text, out = run("batch", fill)
        faults = _faults_of_batch(out, code, text, wanted=wanted, bad=list(numbers))
        return {"bad": bads, "good": goods, "exit_code": code, **faults}

    for number in itertools.count():
        yield f"{number}", lambda number=number: batch(number)


def _faults_of_batch(
    out: Path, code: int, text: str, *, wanted: dict[str, str], bad: list[str]
) -> Row:
    """Count good masks lost, masks that are empty without a word, and what else is wrong."""
    found = _masks(out)
    lost = [name for name, digest in wanted.items() if found.get(name) != digest]
    faults = [] if code in _DOCUMENTED_CODES else [f"exit code {code}"]
    if "Traceback" in text:
        faults.append(text[text.index("Traceback") :][:600])
    silent = []
    if not (out / "run_report.json").is_file():
        return {"good_lost": len(lost), "silent": 0, "faults": [*faults, "no report", text[-300:]]}
    from sslmedsam2.imaging.reading import read_mask
    from sslmedsam2.reporting.run_report import SeriesStatus, load_report

    run = load_report(out / "run_report.json")
    for result in run.series:
        good = result.status in (SeriesStatus.OK, SeriesStatus.CHECK)
        if not good and not result.error:
            silent.append(f"{result.input_path}: {result.status} without a reason")
        if good and not read_mask(out / str(result.output_path)).array_zyx.any():
            silent.append(f"{result.input_path}: an empty mask")
    reported = json.dumps([asdict(one) for one in (*run.series, *run.left_out)], default=str) + text
    silent += [f"{case}: not a word" for case in bad if case not in reported]
    return {"good_lost": len(lost), "silent": len(silent), "faults": [*faults, *lost, *silent]}


# Kills


def kill_units(options: Any) -> Iterator[Unit]:
    """Each unit kills one command some times, and compares what the last start gives."""
    kinds = (options.command,) if options.command else ("predict",) * 6 + ("pseudo-label", "train")
    whole: dict[str, tuple[list[str], dict[str, str], float]] = {}

    def chain(kind: str, number: int) -> Row:
        import fault_runs

        scratch = options.scratch
        if kind not in whole:
            whole[kind] = _undisturbed(kind, scratch)
        command, wanted, seconds = whole[kind]
        random, out = Random(f"{options.seed}/{kind}/{number}"), scratch / "killed"
        shutil.rmtree(out, ignore_errors=True)
        kills, losses = 0, []
        for _ in range(_STARTS[kind]):
            # Half of a whole run's time, for each start goes on where the one before was killed.
            if _killed(command, out, after=random.uniform(0, seconds / 2)):
                kills += 1
            now = fault_runs.results(out)
            losses += [
                f"{name} is wrong after a kill"
                for name, digest in now.items()
                if name.endswith((".nii.gz", ".pth")) and digest != wanted.get(name)
            ]
        code, text = _finished(command, out)
        if code != 0:
            losses.append(f"the last start ended with {code}: {text[-300:]}")
        elif (now := fault_runs.results(out)) != wanted:
            names = sorted(n for n in now.keys() | wanted.keys() if now.get(n) != wanted.get(n))
            losses.append(f"the last start gave another {', '.join(names)}")
        hidden = [one.name for one in out.rglob(".*") if one.is_file()]
        return {"command": kind, "kills": kills, "losses": losses, "left_over": len(hidden)}

    for number, kind in enumerate(itertools.cycle(kinds)):
        yield f"{kind}/{number}", lambda kind=kind, number=number: chain(kind, number)


_STARTS = {"predict": 4, "pseudo-label": 5, "train": 6, "retrain": 10}


def _undisturbed(kind: str, scratch: Path) -> tuple[list[str], dict[str, str], float]:
    """Run a command once; return it, the hashes of its results and how long it took."""
    import fault_runs

    for name in fault_runs.IMPORTED[kind]:
        importlib.import_module(name)
    command = fault_runs.make_inputs(kind, scratch / f"inputs-{kind}")
    start = time.monotonic()
    code, text = _finished(command, scratch / f"whole-{kind}")
    seconds = time.monotonic() - start
    assert code == 0, text
    wanted = fault_runs.results(scratch / f"whole-{kind}")
    assert any(name.endswith((".nii.gz", ".pth")) for name in wanted), wanted
    return command, wanted, seconds


def _started(command: list[str], out: Path) -> int:
    import fault_runs

    out.mkdir(exist_ok=True)
    return fault_runs.start_child(
        lambda: fault_runs.call_cli(command, out), out.with_suffix(".log")
    )


def _finished(command: list[str], out: Path) -> tuple[int, str]:
    code = _exit_code(_started(command, out))
    return code, out.with_suffix(".log").read_text()


def _exit_code(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def _killed(command: list[str], out: Path, *, after: float) -> bool:
    """Start a command and kill it; whether it was still at work."""
    process = _started(command, out)
    time.sleep(after)
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)
    return _exit_code(process) == -signal.SIGKILL


def double_units(options: Any) -> Iterator[Unit]:
    """Start ``predict`` twice on one folder: one is refused, and nothing is the worse for it."""
    state: list[Any] = []

    def twice(number: int) -> Row:
        import fault_runs

        if not state:
            state.extend(_undisturbed("predict", options.scratch))
        command, wanted, seconds = state
        out, random = options.scratch / "double", Random(f"{options.seed}/double/{number}")
        shutil.rmtree(out, ignore_errors=True)
        first = _started(command, out)
        time.sleep(random.uniform(0, seconds))
        second = _started(command, out)
        codes = sorted((_exit_code(first), _exit_code(second)))
        losses = [] if codes in ([0, 0], [0, 2]) else [f"exit codes {codes}"]
        if fault_runs.results(out) != wanted:
            losses.append("another result")
        return {"refused": int(codes == [0, 2]), "losses": losses}

    for number in itertools.count():
        yield f"{number}", lambda number=number: twice(number)


# Long runs


def soak_units(options: Any) -> Iterator[Unit]:
    """One unit is a process that runs ``predict`` on 100 volumes some times."""
    runs = 3 if options.small else options.soak_runs

    def soak() -> Row:
        scratch, volumes = options.scratch, 10 if options.small else SOAK_VOLUMES
        for number in range(volumes):
            _write_small(scratch / "in" / f"{number:04}-A", seed=number % 10)
        model = _tiny_model(scratch)
        result = scratch / "soak.json"

        def work() -> int:
            samples = []
            for number in range(runs):
                out = scratch / "out"
                shutil.rmtree(out, ignore_errors=True)
                cpu = time.process_time()
                code = _predict_here(scratch / "in", out, model)
                cpu = time.process_time() - cpu
                assert code == 0
                masks = hashlib.sha256(json.dumps(_masks(out)).encode()).hexdigest()
                gc.collect()
                samples.append({"cpu": cpu, "masks": masks, **_own_size()})
                result.write_text(json.dumps(samples))
                print(number, samples[-1], flush=True)
            return 0

        assert _in_child(work, scratch / "soak.log") == 0, (scratch / "soak.log").read_text()[-900:]
        samples = json.loads(result.read_text())
        tenth = max(1, runs // 10)
        times = [one["cpu"] for one in samples]
        first, last = (statistics.median(part) for part in (times[1 : 1 + tenth], times[-tenth:]))
        return {
            "volumes": runs * volumes,
            "memory_mb": [round(one["memory_mb"], 1) for one in samples],
            "descriptors": sorted({one["descriptors"] for one in samples}),
            "threads": sorted({one["threads"] for one in samples}),
            "slower_percent": round(100 * (last / first - 1), 1),
            "different": len({one["masks"] for one in samples}) - 1,
        }

    yield f"{options.seed}", soak


def _own_size() -> Row:
    status = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in status if ":" in line)
    return {
        "memory_mb": int(fields["VmRSS"].split()[0]) / 1024,
        "threads": int(fields["Threads"]),
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
    }


# Other forms of one volume


def metamorphic_units(options: Any) -> Iterator[Unit]:
    """Each unit stores one volume in forms that mean the same, and compares the masks."""
    from tiny_scans import small_abdomen

    per_unit = 12 if options.small else 96
    forms = list(itertools.product(range(48), _STORED_AS))
    model = _tiny_model(options.scratch)
    wanted: dict[int, Any] = {}

    def compare(volume: int, part: list[tuple[int, str]]) -> Row:
        import numpy as np

        from sslmedsam2.imaging.orientation import apply_reorientation, reorientation_of
        from sslmedsam2.imaging.reading import read_mask

        folder, out = options.scratch / "forms", options.scratch / "out"
        for path in (folder, out):
            shutil.rmtree(path, ignore_errors=True)
        # The first is the volume as it is.
        for number, (orientation, kind) in enumerate([(0, "nii.gz i2"), *part]):
            _write_form(folder / f"{number:04}", small_abdomen(volume)[0], orientation, kind)
        code, text = _predict(folder, out, model)
        assert code == 0, text[-900:]
        different = []
        for number, (orientation, kind) in enumerate([(0, "nii.gz i2"), *part]):
            [path] = out.glob(f"{number:04}*_liver.nii.gz")
            mask = read_mask(path)
            turned = apply_reorientation(mask.array_zyx, reorientation_of(mask.geometry))
            first = wanted.setdefault(volume, turned)
            assert first.any()
            if not np.array_equal(turned, first):
                different.append(f"{orientation} {kind}: {np.count_nonzero(turned != first)}")
        return {"pairs": len(part), "different": different}

    for volume in itertools.count():
        for start in range(0, len(forms), per_unit):
            part = forms[start : start + per_unit]
            if options.small:
                part = Random(volume).sample(forms, per_unit)
            yield f"{volume}/{start}", lambda v=volume, part=part: compare(v, part)


_STORED_AS = (
    *("nii i2", "nii.gz i2", "nii.gz >u2", "nii.gz f4", "nii.gz f8", "nii.gz i4"),
    *("nii.gz halved", "nii.gz shifted", "nii2 i2", "mha i2", "mha f4", "nrrd i2", "nrrd f4"),
    "mgz f4",
)


def _write_form(path: Path, canonical: Any, orientation: int, kind: str) -> None:
    """Write a canonical volume turned, in a format, voxel type and scaling."""
    import nibabel as nib
    import numpy as np
    import SimpleITK as sitk  # noqa: N813
    from tiny_scans import SMALL_AFFINE_RAS

    array_xyz, affine = np.rint(canonical).transpose(2, 1, 0), SMALL_AFFINE_RAS
    axes = list(itertools.permutations(range(3)))[orientation // 8]
    flips = [-1 if orientation % 8 & bit else 1 for bit in (1, 2, 4)]
    turn = np.column_stack([axes, flips])
    affine = affine @ nib.orientations.inv_ornt_aff(turn, array_xyz.shape)
    voxels = np.ascontiguousarray(nib.orientations.apply_orientation(array_xyz, turn))
    extension, dtype = kind.split()
    path.parent.mkdir(parents=True, exist_ok=True)
    if extension in ("mha", "nrrd"):
        image = sitk.GetImageFromArray(voxels.T.astype(dtype))
        lps = np.diag([-1, -1, 1, 1]) @ affine
        spacing = np.linalg.norm(lps[:3, :3], axis=0)
        image.SetSpacing(spacing.tolist())
        image.SetOrigin(lps[:3, 3].tolist())
        image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
        sitk.WriteImage(image, f"{path}.{extension}", useCompression=orientation % 2 == 0)
        return
    if extension == "mgz":
        nib.save(nib.MGHImage(voxels.astype(dtype), affine), f"{path}.mgz")
        return
    slope, intercept = {"halved": (0.5, 0), "shifted": (1, 100)}.get(dtype, (1, 0))
    kinds = {"halved": "i2", "shifted": "i2"}
    stored = ((voxels - intercept) / slope).astype(kinds.get(dtype, dtype))
    make = nib.Nifti2Image if extension == "nii2" else nib.Nifti1Image
    header = make.header_class(endianness=">" if dtype.startswith(">") else "<")
    image = make(stored, affine, header)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    image.header.set_data_dtype(stored.dtype)
    image.header.set_slope_inter(slope, intercept)
    # nibabel would scale by itself what it is given.
    content = image.header.binaryblock + bytes(4) + stored.tobytes(order="F")
    image.header["vox_offset"] = len(image.header.binaryblock) + 4
    content = image.header.binaryblock + content[len(image.header.binaryblock) :]
    name = f"{path}.nii" if extension in ("nii", "nii2") else f"{path}.nii.gz"
    if name.endswith(".gz"):
        import gzip

        content = gzip.compress(content, 1, mtime=0)
    Path(name).write_bytes(content)


def sameness_units(options: Any) -> Iterator[Unit]:
    """Each unit runs ``predict`` with 1 or 2 processors and keeps the hash of the masks."""
    model = _tiny_model(options.scratch)
    for number in range(3):
        _write_small(options.scratch / "in" / f"{number:04}-A", seed=number)

    def same(processors: int) -> Row:
        out = options.scratch / "out"
        shutil.rmtree(out, ignore_errors=True)
        code, text = _predict(options.scratch / "in", out, model, processors=processors)
        assert code == 0, text
        masks = hashlib.sha256(json.dumps(_masks(out), sort_keys=True).encode()).hexdigest()
        return {"processors": processors, "masks": masks}

    for number in itertools.count():
        yield f"{number}", lambda processors=1 + number % 2: same(processors)


# What parts share


def _tiny_model(folder: Path) -> Path:
    from tiny_models import bright_tissue_model

    model = folder / "model"
    return model if model.is_dir() else bright_tissue_model(model)


def _write_small(case: Path, *, seed: int) -> None:
    from tiny_scans import SMALL_AFFINE_RAS, small_abdomen, write_scan

    write_scan(case / "GED4.nii.gz", small_abdomen(seed)[0], affine_ras=SMALL_AFFINE_RAS)


def _predict(
    folder: Path, out: Path, model: Path, *, processors: int | None = None
) -> tuple[int, str]:
    """Run ``predict`` in a fork."""

    def work() -> int:
        if processors is not None:
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:processors])
        return _predict_here(folder, out, model)

    out.parent.mkdir(parents=True, exist_ok=True)
    log = out.with_suffix(".log")
    return _in_child(work, log), log.read_text(errors="replace")


def _in_child(work: Callable[[], int], log: Path) -> int:
    import fault_runs

    for name in fault_runs.IMPORTED["predict"]:
        importlib.import_module(name)
    return fault_runs.in_child(work, log)


def _predict_here(folder: Path, out: Path, model: Path) -> int:
    from sslmedsam2.cli.main import main as cli

    command = ["predict", str(folder), "-o", str(out), "--model", str(model), "--device", "cpu"]
    return cli([*command, "--no-previews", "--on-failure", "skip"])


def _masks(out: Path) -> dict[str, str]:
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*.nii.gz"))
    }


# Sums

_MUST_BE_ZERO = (
    *("fuzz_failures", "good_lost", "silent_empties", "batch_faults", "kill_losses"),
    *("double_run_losses", "metamorphic_different", "sameness_different"),
)


def summary(rows: list[Row]) -> Row:
    by_part: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_part[row["part"]].append(row)

    def total(part: str, key: str) -> int:
        values = [row[key] for row in by_part[part]]
        return sum(len(value) if isinstance(value, list) else value for value in values)

    by_format: dict[str, int] = defaultdict(int)
    for row in by_part["fuzz"]:
        by_format[row["unit"].partition("/")[0]] += row["inputs"]
    by_command: dict[str, int] = defaultdict(int)
    for row in by_part["kills"]:
        by_command[row["command"]] += row["kills"]
    hashes = {row["masks"] for row in by_part["sameness"]}
    soaks = by_part["soak"]
    # After the first run of 100 volumes.
    growths = [one["memory_mb"][-1] / one["memory_mb"][0] - 1 for one in soaks]
    return {
        "seeds": sorted({row["seed"] for row in rows}),
        "fuzz_inputs": total("fuzz", "inputs"),
        "fuzz_inputs_by_format": dict(by_format),
        "fuzz_failures": total("fuzz", "faults"),
        "bad_batch_inputs": total("batches", "bad"),
        "good_batch_inputs": total("batches", "good"),
        "good_lost": total("batches", "good_lost"),
        "silent_empties": total("batches", "silent"),
        "batch_faults": total("batches", "faults"),
        "kills": total("kills", "kills"),
        "kills_by_command": dict(by_command),
        "kill_losses": total("kills", "losses"),
        "double_runs": len(by_part["double"]),
        "double_runs_refused": total("double", "refused"),
        "double_run_losses": total("double", "losses"),
        "soak_volumes": total("soak", "volumes"),
        "soak_growth_percent": round(100 * max(growths), 2) if growths else None,
        "soak_slower_percent": max((one["slower_percent"] for one in soaks), default=None),
        "soak_descriptors": [one["descriptors"] for one in soaks],
        "metamorphic_pairs": total("metamorphic", "pairs"),
        "metamorphic_different": total("metamorphic", "different"),
        "sameness_runs": len(by_part["sameness"]),
        "sameness_different": max(0, len(hashes) - 1),
    }


def with_earlier(figures: Row, earlier: Row) -> Row:
    """Add sums whose rows are gone: counts and lists together, of percentages the worst."""
    origin = {name: earlier[name] for name in ("date", "machine", "seeds")}
    added: Row = {"earlier": [*earlier.get("earlier", []), origin]}
    for name, new in figures.items():
        old = earlier[name]
        if name == "seeds":
            added[name] = sorted({*old, *new})
        elif name.endswith("_percent"):
            added[name] = max((one for one in (old, new) if one is not None), default=None)
        elif isinstance(new, dict):
            added[name] = {key: old.get(key, 0) + new.get(key, 0) for key in {**old, **new}}
        else:
            added[name] = old + new
    return added


PARTS: dict[str, Callable[[Any], Iterator[Unit]]] = {
    "fuzz": fuzz_units,
    "batches": batch_units,
    "kills": kill_units,
    "double": double_units,
    "soak": soak_units,
    "metamorphic": metamorphic_units,
    "sameness": sameness_units,
}
_SMALL = {"fuzz": 1, "batches": 2, "kills": 2, "double": 2, "soak": 1, "metamorphic": 2}
_SMALL["sameness"] = 2


if __name__ == "__main__":
    main()
