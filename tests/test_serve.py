"""The server answers a real client over a real socket."""

import http.client
import json
import shutil
import socket
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from tiny_scans import write_scan

from sslmedsam2.cli.main import main
from sslmedsam2.errors import ExitCode
from sslmedsam2.imaging.reading import read_mask

pytest.importorskip("starlette", reason="the extra serve is not installed")
uvicorn = pytest.importorskip("uvicorn", reason="the extra serve is not installed")

from sslmedsam2.api import LiverSegmenter  # noqa: E402
from sslmedsam2.serve import ServeOptions, make_app  # noqa: E402


class _Served:
    def __init__(self, url, input_dir, output_dir, segmenter):
        self.url, self.input, self.output = url, input_dir, output_dir
        self.segmenter = segmenter

    def ask(self, path, data=None, method="POST"):
        """Return status, body and headers."""
        request = urllib.request.Request(self.url + path, data=data, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read(), answer.headers
        except urllib.error.HTTPError as error:
            return error.code, error.read(), error.headers


@pytest.fixture(scope="module")
def served(tmp_path_factory, bright_model):
    folder = tmp_path_factory.mktemp("served")
    options = ServeOptions(folder / "input", folder / "output", max_upload_bytes=2**20)
    segmenter = LiverSegmenter(bright_model, device="cpu")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = uvicorn.Config(
        make_app(segmenter, options), host="127.0.0.1", port=port, log_level="error"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not server.started:
        assert time.monotonic() < deadline, "the server did not start"
        time.sleep(0.05)
    yield _Served(f"http://127.0.0.1:{port}", options.input_dir, options.output_dir, segmenter)
    server.should_exit = True
    thread.join(timeout=30)


def _scan(folder: Path, name: str = "scan.nii.gz") -> Path:
    return write_scan(folder / name)


def test_health_tells_what_is_loaded(served):
    status, body, _ = served.ask("/health", method="GET")
    assert status == 200
    assert json.loads(body)["status"] == "ok"
    assert json.loads(body)["device"] == "cpu"


def test_an_image_sent_comes_back_as_the_mask_that_python_gives(served, tmp_path):
    scan = _scan(tmp_path)
    status, body, headers = served.ask("/segment?name=scan.nii.gz", scan.read_bytes())
    assert status == 200
    (tmp_path / "mask.nii.gz").write_bytes(body)
    expected = served.segmenter.segment(scan)
    assert np.array_equal(read_mask(tmp_path / "mask.nii.gz").array_zyx, expected.mask_zyx)
    assert float(headers["X-Liver-Volume-Ml"]) == pytest.approx(expected.volume_ml, abs=0.1)
    assert headers["X-Verdict"] == expected.verdict


@pytest.mark.parametrize(("path", "status"), [("/segment", 405), ("/", 404)])
def test_a_request_that_does_not_exist_is_told_which_do(served, path, status):
    answered, body, _ = served.ask(path, method="GET")
    assert answered == status
    assert "POST /segment" in json.loads(body)["error"]


@pytest.mark.parametrize("name", ["scan.exe", "../../etc/passwd", "scan.mhd"])
def test_another_format_is_refused_in_one_line(served, name):
    status, body, _ = served.ask(f"/segment?name={name}", b"content")
    assert status == 422
    assert "no supported format" in json.loads(body)["error"]


def test_what_is_no_image_is_refused_in_one_line(served):
    status, body, _ = served.ask("/segment?name=T2.nii.gz", b"this is no image")
    assert status == 422
    error = json.loads(body)["error"]
    assert error.startswith("T2.nii.gz: ")
    assert "\n" not in error
    assert "/" not in error


def test_a_form_is_refused_with_what_to_do(served):
    request = urllib.request.Request(
        served.url + "/segment", b"--b", {"Content-Type": "multipart/form-data; boundary=b"}
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=60)
    assert "Send the file itself" in json.load(refused.value)["error"]


def test_an_image_beyond_the_limit_is_refused(served):
    # It is refused before its body, so that a client which goes on sending may lose the answer.
    with _declare(served.url, 2**20 + 1) as connection:
        answer = http.client.HTTPResponse(connection, method="POST")
        answer.begin()
        assert answer.status == 413
        assert "1 MB" in json.loads(answer.read())["error"]


def test_declared_lengths_of_gigabytes_are_refused_without_their_bodies_and_take_no_memory(served):
    """CVE-2026-5440: Orthanc allocated what Content-Length said, before a body arrived."""
    before = _resident_bytes()
    connections = [_declare(served.url, 2**32 - 1) for _ in range(20)]
    answers = [connection.recv(1024) for connection in connections]
    grown = _resident_bytes() - before
    for connection in connections:
        connection.close()
    assert all(answer.startswith(b"HTTP/1.1 413 ") for answer in answers)
    assert grown < 64 * 2**20
    assert served.ask("/health", method="GET")[0] == 200


def test_a_body_shorter_than_declared_gets_no_mask_and_the_server_goes_on(served):
    """CVE-2026-5440: a client that does not send what it declares."""
    connection = _declare(served.url, 1000)
    connection.sendall(b"less")
    connection.close()
    assert served.ask("/segment", b"this is no image")[0] == 422


def _declare(url: str, length: int) -> socket.socket:
    """Send the head of an upload and nothing of its body."""
    host, _, port = url.removeprefix("http://").partition(":")
    connection = socket.create_connection((host, int(port)), timeout=30)
    head = f"POST /segment HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n\r\n"
    connection.sendall(head.encode())
    return connection


def _resident_bytes() -> int:
    statm = Path("/proc/self/statm")
    if not statm.is_file():
        pytest.skip("the memory of this process is not told here")
    return int(statm.read_text().split()[1]) * 4096


def test_a_port_that_is_taken_is_reported_before_the_model_is_loaded(capsys, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code = main(["serve", "--port", str(port), "--model", str(tmp_path / "none")])
    assert code == ExitCode.USAGE
    assert f"--port {port}: the address cannot be used" in capsys.readouterr().err


def test_invoke_writes_a_mask_for_the_platform(served):
    _scan(served.input / "images" / "abdominal-mri", "b1.nii.gz")
    status, body, _ = served.ask("/invoke")
    assert status == 201
    assert json.loads(body)["written"] == ["images/liver-segmentation/output.mha"]
    mask = read_mask(served.output / "images" / "liver-segmentation" / "output.mha")
    assert mask.array_zyx.any()


def test_images_of_one_name_get_a_mask_each(served, tmp_path):
    kept = (served.input / "images").rename(tmp_path / "kept")
    for slug in ("t1", "t2"):
        _scan(served.input / "images" / slug, "scan.nii.gz")
    _scan(served.input / "images" / "t2", "other.nii.gz")
    _, body, _ = served.ask("/invoke")
    shutil.rmtree(served.input / "images")
    kept.rename(served.input / "images")
    written = json.loads(body)["written"]
    assert [name.rpartition("/")[2] for name in written] == [
        "t1_scan.nii.gz.mha",
        "other.mha",
        "t2_scan.nii.gz.mha",
    ]
    assert all((served.output / name).is_file() for name in written)


@pytest.fixture
def case(served, tmp_path):
    """The folder of the images of a case of its own."""
    images, output = served.input / "images", served.output / "images"
    for number, folder in enumerate((images, output)):
        if folder.exists():
            folder.rename(tmp_path / str(number))
    (images / "mri").mkdir(parents=True)
    yield images / "mri"
    for number, folder in enumerate((images, output)):
        shutil.rmtree(folder, ignore_errors=True)
        if (tmp_path / str(number)).exists():
            (tmp_path / str(number)).rename(folder)


def test_hidden_files_beside_an_image_are_no_images(served, case):
    _scan(case)
    (case / "._scan.nii.gz").write_bytes(b"Mac OS X")
    (case.parent / "__MACOSX").mkdir()
    (case.parent / "__MACOSX" / "scan.nii.gz").write_bytes(b"Mac OS X")

    status, body, _ = served.ask("/invoke")

    assert status == 201
    assert json.loads(body)["written"] == ["images/liver-segmentation/output.mha"]


def test_a_bad_image_leaves_no_masks_of_the_others(served, case):
    _scan(case, "a.nii.gz")
    (case / "b.nii.gz").write_bytes(b"this is no image")

    status, body, _ = served.ask("/invoke")

    assert status == 422
    assert "b.nii.gz" in json.loads(body)["error"]
    assert not list(served.output.rglob("*.mha"))


def test_invoke_without_an_image_says_what_is_missing(served, tmp_path):
    app_input = served.input / "images"
    hidden = app_input.rename(tmp_path / "hidden")
    status, body, _ = served.ask("/invoke")
    hidden.rename(app_input)
    assert status == 422
    assert "no image was found" in json.loads(body)["error"]


def test_an_unforeseen_error_is_json_and_the_server_goes_on(served, monkeypatch, tmp_path):
    scan = _scan(tmp_path).read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path / "no such folder"))
        status, body, _ = served.ask("/segment", scan)

    assert status == 500
    assert "an unforeseen error: FileNotFoundError" in json.loads(body)["error"]
    assert served.ask("/segment", scan)[0] == 200


def test_a_second_job_is_turned_away_while_one_runs(served, monkeypatch, tmp_path):
    begun, let_go = threading.Event(), threading.Event()
    segment = LiverSegmenter.segment

    def slow(self, image):
        begun.set()
        assert let_go.wait(30)
        return segment(self, image)

    monkeypatch.setattr(LiverSegmenter, "segment", slow)
    scan = _scan(tmp_path).read_bytes()
    answers = []
    first = threading.Thread(target=lambda: answers.append(served.ask("/segment", scan)))
    first.start()
    assert begun.wait(30)
    status, _, headers = served.ask("/segment", scan)
    let_go.set()
    first.join(60)
    assert status == 503
    assert headers["Retry-After"] == "5"
    assert answers[0][0] == 200
