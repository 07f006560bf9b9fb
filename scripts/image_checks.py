"""Runs a built image as a strict platform would, and looks at what it does.

`python image_checks.py --work FOLDER --image NAME -- ENGINE...`, from `scripts/test_image.sh`.
Masks are compared with those that this machine's own environment makes. Ends with 1 if any check
fails; the table and the figures go to FOLDER/image.json too.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests")]

INPUTS = REPOSITORY / "test_inputs" / "images"
HARDENED = (
    "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges",
    "--pids-limit=128", "--memory=8g", "--shm-size=64m",
)  # fmt: skip
PODMAN_ONLY = (
    # As Docker does it: without writable folders of its own.
    "--read-only-tmpfs=false",
    "--ulimit=nofile=20000:20000",
    "--ulimit=nproc=4096:4096",
)
STRANGER = "31415:27182"
OWNER = (4242, 4242)
TINY_TRAINING = (
    "--rounds=1", "--folds=2", "--epochs=1", "--iterations-per-epoch=2", "--sequences=GED4",
)  # fmt: skip
MEMORY_LIMITS = ("4g", "2g", "1g", "512m", "256m", "192m", "128m")
DENIED_SYSTEM_CALLS = (
    *("socket", "connect", "bind", "listen", "accept", "accept4", "sendmmsg", "recvmmsg"),
    *("ptrace", "process_vm_readv", "process_vm_writev", "kcmp", "perf_event_open", "bpf"),
    *("mount", "umount2", "pivot_root", "chroot", "unshare", "setns", "mknod", "mknodat"),
    *("keyctl", "add_key", "request_key", "userfaultfd", "io_uring_setup", "io_uring_enter"),
    *("open_by_handle_at", "name_to_handle_at", "kexec_load", "init_module", "finit_module"),
)
SERVER_STARTS_S = 120
LARGEST_IMAGE_BYTES = 2_500_000_000
TIME_LIMIT_S = 900
_POLL_S = 0.1


class CheckFailedError(Exception):
    """A check did not hold; the message says what was seen."""


class CheckSkippedError(Exception):
    """A check could not be made; the message says why."""


@dataclass(frozen=True)
class CheckResult:
    name: str
    verdict: str
    detail: str
    seconds: float


@dataclass
class Ended:
    """A container that has ended, and what was seen of it meanwhile."""

    code: int
    log: str
    seconds: float
    peak_memory_mb: float = 0.0
    peak_threads: int = 0
    seconds_to_file: float | None = None


@dataclass
class Bench:
    """The engine, the image and the folder that all checks work in."""

    engine: tuple[str, ...]
    image: str
    work: Path
    time_limit_s: float = TIME_LIMIT_S
    figures: dict[str, object] = field(default_factory=dict)

    def folder(self, name: str, *, owner: tuple[int, int] | None = None) -> Path:
        """Make an empty folder: of ``owner``, or else open to everybody."""
        path = self.work / name
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        if owner is None:
            path.chmod(0o777)
        else:
            os.chown(path, *owner)
        return path

    def run(
        self,
        *args: str,
        mounts: dict[Path, str],
        user: str = STRANGER,
        network: str = "none",
        options: tuple[str, ...] = (),
        wait_for: str | None = None,
        then: Callable[[str], None] | None = None,
    ) -> Ended:
        """Run the image with every restriction, watch it, and wait for its end.

        Parameters
        ----------
        mounts
            From folders to places in the container; ``:ro`` may end a place.
        options
            Of the engine's ``run``, after the restrictions.
        wait_for
            A pattern below the first writable folder; ``seconds_to_file`` tells when it appeared.
        then
            Called with the container's name once that is so, or at once without ``wait_for``.
        """
        restrictions = [*HARDENED, f"--user={user}", f"--network={network}"]
        if self.engine[0] == "podman":
            restrictions += PODMAN_ONLY
        volumes = [f"--volume={folder}:{place}" for folder, place in mounts.items()]
        name = f"sslmedsam2-check-{os.getpid()}"
        start = time.perf_counter()
        everything = (*restrictions, *volumes, *options)
        self.call("run", "--detach", "--name", name, *everything, self.image, *args)
        try:
            ended = self._watch(name, start, mounts, wait_for=wait_for, then=then)
        finally:
            self.call("rm", "--force", "--volumes", name)
        return ended

    def _watch(
        self,
        name: str,
        start: float,
        mounts: dict[Path, str],
        *,
        wait_for: str | None,
        then: Callable[[str], None] | None,
    ) -> Ended:
        pid = self.call("inspect", "--format", "{{.State.Pid}}", name).strip()
        done = threading.Event()
        seen = Ended(code=-1, log="", seconds=0.0)
        outputs = [folder for folder, place in mounts.items() if not place.endswith(":ro")]

        def poll() -> None:
            while not done.wait(_POLL_S):
                _read_status(pid, seen)
                if seen.seconds_to_file is not None or not (wait_for or then):
                    continue
                if wait_for is None or any(outputs[0].glob(wait_for)):
                    seen.seconds_to_file = time.perf_counter() - start
                    if then is not None:
                        then(name)

        watcher = threading.Thread(target=poll)
        watcher.start()
        try:
            seen.code = int(self.call("wait", name, time_limit_s=self.time_limit_s))
        finally:
            done.set()
            watcher.join()
        seen.seconds = time.perf_counter() - start
        logs = subprocess.run(
            [*self.engine, "logs", name], capture_output=True, text=True, check=False
        )
        seen.log = logs.stdout + logs.stderr
        return seen

    def call(self, *args: str, time_limit_s: float = 120) -> str:
        """Call the engine; raise with its words if it fails."""
        done = subprocess.run(
            [*self.engine, *args], capture_output=True, text=True, timeout=time_limit_s, check=False
        )
        if done.returncode:
            raise CheckFailedError(f"{' '.join(args[:3])}...: {done.stderr.strip()[-300:]}")
        return done.stdout


def _read_status(pid: str, seen: Ended) -> None:
    """Note the most memory and threads of the container's one process."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return
    for name, value in re.findall(r"^(VmHWM|Threads):\s+(\d+)", status, re.MULTILINE):
        if name == "Threads":
            seen.peak_threads = max(seen.peak_threads, int(value))
        else:
            seen.peak_memory_mb = max(seen.peak_memory_mb, int(value) / 1000)


def expect(condition: bool, otherwise: str) -> None:
    if not condition:
        raise CheckFailedError(otherwise)


def outside(*args: str, codes: tuple[int, ...] = (0,)) -> str:
    """Run the command line in this machine's own environment."""
    command = [sys.executable, str(REPOSITORY / "entrypoint.py"), *args]
    # Other kernels of numpy's library round differently; the container has none of these variables.
    plain = {key: value for key, value in os.environ.items() if not key.startswith("OPENBLAS_")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=plain)
    expect(done.returncode in codes, f"outside: {' '.join(args)}: {done.stderr.strip()[-300:]}")
    return done.stdout


def masks_of(output: Path) -> dict[str, str]:
    """Return the SHA-256 of each mask file, by its path."""
    return {
        path.relative_to(output).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(output.glob("LiSeg_pred/*/*.nii.gz"))
    }


def expect_same_masks(output: Path, reference: Path) -> str:
    """Compare all masks of two runs byte by byte."""
    here, there = masks_of(output), masks_of(reference)
    expect(bool(there), f"no mask in {reference}")
    differing = sorted(
        name for name in here.keys() | there.keys() if here.get(name) != there.get(name)
    )
    expect(not differing, f"masks differ from those made outside: {differing}")
    return f"{len(here)} masks identical"


def expect_no_traceback(ended: Ended) -> None:
    expect("Traceback" not in ended.log, f"a traceback: {ended.log.strip()[-300:]}")


def statuses(output: Path) -> dict[str, str]:
    report = json.loads((output / "run_report.json").read_text(encoding="utf-8"))
    return {f"{s['case']}/{s['sequence']}": s["status"] for s in report["series"]}


def check_size(bench: Bench) -> str:
    size = int(bench.call("image", "inspect", "--format", "{{.Size}}", bench.image))
    bench.figures["image_mb"] = round(size / 1e6)
    expect(size <= LARGEST_IMAGE_BYTES, f"{size / 1e9:.2f} GB are more than 2.5")
    return f"{size / 1e9:.2f} GB"


def check_metadata(bench: Bench) -> str:
    (image,) = json.loads(bench.call("image", "inspect", bench.image))
    config = image["Config"]
    labels = {key.rpartition(".")[2] for key, value in config["Labels"].items() if value}
    expect({"version", "revision", "licenses"} <= labels, f"labels: {sorted(labels)}")
    user = config["User"].split(":")[0]
    expect(user.isdigit() and user != "0", f"user {config['User']}")
    expect(config["Entrypoint"][-1] == "/app/entrypoint.py", f"{config['Entrypoint']}")
    health = config.get("Healthcheck") or image.get("Healthcheck") or {}
    expect("doctor" in " ".join(health.get("Test", [])), f"health check: {health}")
    return f"user {config['User']}, health check, {len(labels)} labels"


def check_contents(bench: Bench) -> str:
    from image_contents import search

    archive = bench.work / "image.tar"
    archive.unlink(missing_ok=True)
    formats = ["--format=docker-archive"] if bench.engine[0] == "podman" else []
    bench.call("save", *formats, "--output", str(archive), bench.image, time_limit_s=600)
    forbidden = json.loads((bench.work / "site" / "forbidden.json").read_text(encoding="utf-8"))
    found = sorted(set(search(archive, forbidden["strings"], forbidden["certificates"])))
    archive.unlink()
    expect(not found, f"{len(found)} things that should not be there: {'; '.join(found[:5])}")
    return (
        f"no installer, compiler, cache, test data, {len(forbidden['strings'])} names and"
        f" {len(forbidden['certificates'])} certificates of this machine"
    )


def check_start(bench: Bench) -> str:
    ended = bench.run("--version", mounts={})
    expect(ended.code == 0, ended.log)
    bench.figures["seconds_version"] = round(ended.seconds, 1)
    return f"{ended.seconds:.1f} s"


def check_default(bench: Bench) -> str:
    output = bench.folder("default")
    mounts = {INPUTS: "/input:ro", output: "/output"}
    ended = bench.run(mounts=mounts, wait_for="LiSeg_pred/*/*_pred.nii.gz")
    expect(ended.code == 0, f"exit code {ended.code}: {ended.log.strip()[-300:]}")
    expect_no_traceback(ended)
    outside("validate", "--input", str(INPUTS), "--output", str(output))
    same = expect_same_masks(output, bench.work / "outside")
    bench.figures |= {
        "seconds_to_first_mask": round(ended.seconds_to_file or ended.seconds, 1),
        "seconds_predict": round(ended.seconds, 1),
        "peak_memory_mb_predict": round(ended.peak_memory_mb),
        "peak_threads_predict": ended.peak_threads,
    }
    return (
        f"{same} and valid; first after {ended.seconds_to_file:.1f} s, all after"
        f" {ended.seconds:.1f} s; {ended.peak_memory_mb:.0f} MB, {ended.peak_threads} threads"
    )


def check_owner(bench: Bench) -> str:
    output = bench.folder("owner", owner=OWNER)
    output.chmod(0o700)
    user = f"{OWNER[0]}:{OWNER[1]}"
    ended = bench.run(mounts={INPUTS: "/input:ro", output: "/output"}, user=user)
    expect(ended.code == 0, f"exit code {ended.code}: {ended.log.strip()[-300:]}")
    outside("validate", "--input", str(INPUTS), "--output", str(output))
    owners = {(p.stat().st_uid, p.stat().st_gid) for p in output.rglob("*")}
    expect(owners == {OWNER}, f"files belong to {owners}")
    return f"{expect_same_masks(output, bench.work / 'outside')} and valid, files of {user}"


def make_broken_cases(folder: Path) -> None:
    """Write one good case, and one case for each of some files that cannot be used."""
    from bad_inputs import BAD_INPUTS

    shutil.copytree(INPUTS / "Vendor-C" / "0004-C", folder / "0004-C")
    chosen = [name for name, bad in BAD_INPUTS.items() if bad.kind is not None]
    for number, name in enumerate(chosen[:: max(1, len(chosen) // 8)]):
        case = folder / f"{9000 + number}-A"
        case.mkdir()
        BAD_INPUTS[name].write(case, "GED4")


def check_broken_cases(bench: Bench) -> str:
    inputs, output = bench.folder("broken_in"), bench.folder("broken_out")
    make_broken_cases(inputs)
    reference = bench.folder("broken_outside")
    # As in a container; elsewhere no guess is written.
    options = ("--output", str(reference), "--on-failure", "fallback")
    outside("predict", "--input", str(inputs), *options, codes=(1,))
    ended = bench.run(mounts={inputs: "/input:ro", output: "/output"})
    expect(ended.code == 1, f"exit code {ended.code}: {ended.log.strip()[-300:]}")
    expect_no_traceback(ended)
    found = statuses(output)
    expect(found == statuses(reference), f"statuses {found}")
    bad = {name: status for name, status in found.items() if not name.startswith("0004-C")}
    expect(bool(bad) and set(bad.values()) <= {"fallback", "failed"}, f"statuses {bad}")
    expect(all(found[f"0004-C/{s}"] == "ok" for s in ("T2", "GED4")), f"statuses {found}")
    same = expect_same_masks(output, reference)
    return f"exit code 1, {len(bad)} bad series flagged, the good case untouched, {same}"


def check_stop_and_resume(bench: Bench) -> str:
    output = bench.folder("resumed")
    mounts = {INPUTS: "/input:ro", output: "/output"}
    stopped = bench.run(
        mounts=mounts,
        wait_for="LiSeg_pred/*/*_pred.nii.gz",
        then=lambda name: bench.call("kill", "--signal", "TERM", name),
    )
    expect(stopped.code == 130, f"exit code {stopped.code}: {stopped.log.strip()[-300:]}")
    first = masks_of(output)
    total = len(masks_of(bench.work / "outside"))
    expect(0 < len(first) < total, f"{len(first)} of {total} masks after the stop")
    leftovers = [p.name for p in output.rglob(".*partial*")]
    expect(not leftovers, f"half-written files: {leftovers}")
    resumed = bench.run("--resume", mounts=mounts)
    expect(resumed.code == 0, f"exit code {resumed.code}: {resumed.log.strip()[-300:]}")
    kept = sum(status == "skipped_resume" for status in statuses(output).values())
    expect(kept == len(first), f"{kept} kept of {len(first)}")
    return f"exit code 130 after {len(first)}; {expect_same_masks(output, bench.work / 'outside')}"


def check_unwritable(bench: Bench) -> str:
    output = bench.folder("unwritable")
    output.chmod(0o755)
    ended = bench.run(mounts={INPUTS: "/input:ro", output: "/output"})
    expect(ended.code not in (0, 137), f"exit code {ended.code}")
    expect_no_traceback(ended)
    errors = [line for line in ended.log.splitlines() if line.startswith("error: ")]
    expect(len(errors) == 1, f"{len(errors)} error lines: {ended.log.strip()[-300:]}")
    expect("/output" in errors[0] and "Permission denied" in errors[0], errors[0])
    return f"exit code {ended.code}, one line: {errors[0][:60]}..."


def check_memory(bench: Bench) -> str:
    outcomes = []
    for limit in MEMORY_LIMITS:
        output = bench.folder("memory")
        mounts = {INPUTS / "Vendor-C": "/input:ro", output: "/output"}
        ended = bench.run(mounts=mounts, options=(f"--memory={limit}",))
        found, reference = masks_of(output), masks_of(bench.work / "outside")
        wrong = [name for name, digest in found.items() if reference.get(name) != digest]
        expect(not wrong, f"with {limit} other masks: {wrong}")
        if ended.code == 0:
            whole = {name for name in reference if name.split("/")[1].endswith("-C")}
            expect(found.keys() == whole, f"with {limit} no {whole - found.keys()}")
            outcomes.append(f"{limit} finished")
            continue
        # The system kills without a message, so the run has to warn at its start.
        reported = [line for line in ended.log.splitlines() if "memory" in line]
        expect(bool(reported), f"with {limit}: exit code {ended.code}, and no reason")
        outcomes.append(f"{limit} exit code {ended.code} after {len(found)} masks, with the reason")
    bench.figures["memory_limits"] = outcomes
    return "; ".join(outcomes)


def check_system_calls(bench: Bench) -> str:
    profile = bench.work / "seccomp.json"
    denied = {"names": DENIED_SYSTEM_CALLS, "action": "SCMP_ACT_ERRNO"}
    profile.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [denied]}))
    output = bench.folder("system_calls")
    mounts = {INPUTS: "/input:ro", output: "/output"}
    ended = bench.run(mounts=mounts, options=(f"--security-opt=seccomp={profile}",))
    expect(ended.code == 0, f"exit code {ended.code}: {ended.log.strip()[-300:]}")
    same = expect_same_masks(output, bench.work / "outside")
    return f"{same} with {len(DENIED_SYSTEM_CALLS)} system calls denied, sockets among them"


def check_hostile_inputs(bench: Bench) -> str:
    from known_defects import DEFECTS

    inputs, output = bench.folder("hostile_in"), bench.folder("hostile_out")
    shutil.copytree(INPUTS / "Vendor-C" / "0004-C", inputs / "0004-C")
    for name, defect in DEFECTS.items():
        (inputs / name).mkdir()
        defect.write(inputs / name)
    ended = bench.run("--on-failure", "skip", mounts={inputs: "/input:ro", output: "/output"})
    expect(ended.code == 1, f"exit code {ended.code}: {ended.log.strip()[-300:]}")
    expect_no_traceback(ended)
    run = json.loads((output / "run_report.json").read_text(encoding="utf-8"))
    reported = json.dumps([run["series"], run["left_out"]])
    missing = [name for name, one in DEFECTS.items() if one.kind and f"{name}/" not in reported]
    expect(not missing, f"not a word of {missing}")
    reference, found = masks_of(bench.work / "outside"), masks_of(output)
    good = {name: digest for name, digest in reference.items() if "/0004-C" in name}
    expect(good.items() <= found.items(), "the good scans have other masks")
    bench.figures["peak_memory_mb_hostile"] = round(ended.peak_memory_mb)
    return (
        f"{len(DEFECTS)} hostile files, {len(good)} good masks identical;"
        f" {ended.peak_memory_mb:.0f} MB, {ended.seconds:.0f} s"
    )


def check_serve(bench: Bench) -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url, image = f"http://127.0.0.1:{port}", INPUTS / "Vendor-C" / "0004-C" / "T2.nii.gz"
    answers: dict[str, Any] = {}

    def ask(name: str) -> None:
        try:
            answers["health"] = json.loads(_http(f"{url}/health"))
            answers["mask"] = _http(f"{url}/segment?name={image.name}", image.read_bytes())
        finally:
            bench.call("kill", "--signal", "TERM", name)

    output = bench.folder("serve")
    ended = bench.run(
        *("serve", "--port", str(port)),
        mounts={output: "/output"},
        network="host",
        then=ask,
    )
    expect(answers.keys() == {"health", "mask"}, f"no answer: {ended.log.strip()[-300:]}")
    expect(answers["health"]["status"] == "ok", f"{answers['health']}")
    mask = output / "mask.nii.gz"
    mask.write_bytes(answers["mask"])
    from sslmedsam2.imaging.reading import read_mask

    [expected] = (bench.work / "outside").glob("LiSeg_pred/0004-C/*T2*.nii.gz")
    same = (read_mask(mask).array_zyx == read_mask(expected).array_zyx).all()
    expect(bool(same), "the mask differs from that of predict")
    return f"answers, its mask is that of predict, ended with {ended.code}"


def _http(url: str, data: bytes | None = None) -> bytes:
    """Ask a server that may still be starting."""
    deadline = time.monotonic() + SERVER_STARTS_S
    while True:
        try:
            with urllib.request.urlopen(url, data=data, timeout=SERVER_STARTS_S) as answer:
                return bytes(answer.read())
        except urllib.error.HTTPError as error:
            raise CheckFailedError(f"{url}: {error.read()[:300]!r}") from error
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_POLL_S)


def check_doctor(bench: Bench) -> str:
    output = bench.folder("doctor")
    mounts = {INPUTS: "/input:ro", output: "/output"}
    ended = bench.run("doctor", "--json", mounts=mounts)
    expect(ended.code == 0, f"exit code {ended.code}: {ended.log.strip()[-600:]}")
    table = json.loads(ended.log[ended.log.index("{") : ended.log.rindex("}") + 1])
    findings = table["findings"]
    notes = {name: f["text"] for name, f in findings.items() if f["state"] != "ok"}
    expect(not notes, f"notes: {notes}")
    expect(findings["processes"]["details"]["limit"] == 128, findings["processes"]["text"])
    shared = findings["shared_memory"]["details"]["bytes"]
    expect(60e6 < shared < 70e6, f"{shared} bytes of shared memory")
    expect(findings["weights"]["details"]["models"][0]["verified"], "weights not verified")
    expect("compact" in findings["sam2"]["details"]["weights"], "no compact SAM2")
    screen = bench.run("doctor", "--no-inference", mounts=mounts)
    expect(screen.code == 0, screen.log)
    expect(screen.log.strip().endswith("ready"), screen.log)
    bench.figures["doctor_seconds"] = round(ended.seconds, 1)
    bench.figures["peak_memory_mb_doctor"] = round(ended.peak_memory_mb)
    return f"ready in {ended.seconds:.1f} s; {findings['inference']['text']}"


def check_retrain(bench: Bench) -> str:
    if bench.run("retrain", "--help", mounts={}).code != 0:
        raise CheckSkippedError("this version has no command retrain")
    data = bench.folder("phantoms")
    outside("phantom", "--output", str(data / "labelled"), "--cases", "4", "--labelled", "2")
    for case in data.glob("labelled/*/*"):
        if not any(case.glob("mask_*")):
            target = data / "unlabelled" / case.relative_to(data / "labelled")
            target.parent.mkdir(parents=True, exist_ok=True)
            case.rename(target)
    scratch, weights = bench.folder("scratch"), bench.folder("weights")
    ended = bench.run(
        "retrain", "--labelled", "/data/labelled", "--unlabelled", "/data/unlabelled",
        "--work-dir", "/scratch", "--weights-out", "/weights", *TINY_TRAINING,
        # So short a training may end below the few-shot masks, which freezes nothing otherwise.
        "--force",
        mounts={weights: "/weights", scratch: "/scratch", data: "/data:ro"},
    )  # fmt: skip
    expect(ended.code == 0, f"exit code {ended.code}: {ended.log.strip()[-300:]}")
    expect_no_traceback(ended)
    outside("weights", "verify", "--model", str(weights))
    bench.figures["peak_memory_mb_retrain"] = round(ended.peak_memory_mb)
    bench.figures["seconds_retrain"] = round(ended.seconds, 1)
    return f"frozen weights verified after {ended.seconds:.0f} s; {ended.peak_memory_mb:.0f} MB"


CHECKS: dict[str, Callable[[Bench], str]] = {
    "size": check_size,
    "labels, user, health check": check_metadata,
    "what it must not hold": check_contents,
    "start (--version)": check_start,
    "default command": check_default,
    "another user's folder": check_owner,
    "broken cases": check_broken_cases,
    "SIGTERM, then --resume": check_stop_and_resume,
    "folder not writable": check_unwritable,
    "memory limits": check_memory,
    "system calls denied": check_system_calls,
    "hostile inputs": check_hostile_inputs,
    "serve": check_serve,
    "doctor": check_doctor,
    "retrain": check_retrain,
}


def carry_out(name: str, check: Callable[[Any], str], bench: Any) -> CheckResult:
    """Make one check; whatever goes wrong belongs to it alone."""
    start = time.perf_counter()
    try:
        verdict, detail = "PASS", check(bench)
    except CheckSkippedError as reason:
        verdict, detail = "SKIPPED", str(reason)
    except Exception as error:
        verdict, detail = "FAIL", f"{type(error).__name__}: {error}"
    outcome = CheckResult(name, verdict, detail, round(time.perf_counter() - start, 1))
    print(f"{outcome.verdict:8}{outcome.name:28}{outcome.detail}", flush=True)
    return outcome


def carry_out_all(
    checks: dict[str, Callable[[Any], str]], bench: Any, *, only: str | None, file: Path
) -> bool:
    """Make the checks whose names hold ``only``, write the table, and return whether one failed."""
    chosen = {name: check for name, check in checks.items() if not only or only in name}
    outcomes = [carry_out(name, check, bench) for name, check in chosen.items()]
    result = {"figures": bench.figures, "checks": [asdict(outcome) for outcome in outcomes]}
    file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print("\n" + "\n".join(f"{key:28}{value}" for key, value in bench.figures.items()))
    failed = [outcome.name for outcome in outcomes if outcome.verdict == "FAIL"]
    print(
        f"\n{len(outcomes)} checks, {len(failed)} failed{': ' if failed else ''}{', '.join(failed)}"
    )
    return bool(failed)


def main() -> None:
    """Make the masks outside, then every check, then the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--image", required=True)
    parser.add_argument(
        "--time-limit", type=float, default=TIME_LIMIT_S, help="Seconds for each container."
    )
    parser.add_argument("--only", help="Make only the checks whose names hold this.")
    parser.add_argument("engine", nargs="+")
    options = parser.parse_args()
    work = options.work.resolve()
    bench = Bench(tuple(options.engine), options.image, work, time_limit_s=options.time_limit)
    reference = bench.work / "outside"
    if not (options.only and masks_of(reference)):
        print("making the masks outside the container ...", flush=True)
        inputs = ("--input", str(INPUTS))
        outside("predict", *inputs, "--output", str(bench.folder("outside")))
    sys.exit(carry_out_all(CHECKS, bench, only=options.only, file=bench.work / "image.json"))


if __name__ == "__main__":
    main()
