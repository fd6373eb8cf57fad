"""The shipped serve.py as a process of its own: what it finds, how it starts, and how it ends."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from phase4_deployment.package import serve
from phase4_deployment.package.serving.server import allow_many_connections
from tests.phase4_deployment.packages import run_detect
from tests.phase4_deployment.serving.running import JPEG, Answer, ask, samples, wait_until
from tests.phase4_deployment.test_detect import write_picture

TIMEOUT_S = 60
SERVING = re.compile(r"Serving at http://127\.0\.0\.1:(\d+)/")


def command(package: Path, *options: str) -> list[str]:
    return [sys.executable, "-I", "-B", str(package / "serve.py"), *options]


def run(package: Path, *options: str, cwd: Path) -> SimpleNamespace:
    done = subprocess.run(
        command(package, *options), cwd=cwd, capture_output=True, text=True, timeout=TIMEOUT_S
    )
    return SimpleNamespace(status=done.returncode, out=done.stdout, error=done.stderr.strip())


@contextmanager
def serving(package: Path, *options: str) -> Iterator[SimpleNamespace]:
    """`process`, `port`, and the `first_lines` it wrote; killed at the end if it still runs."""
    process = subprocess.Popen(
        command(package, "--port", "0", "--device", "cpu", *options),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout
    try:
        first_lines = []
        for line in process.stdout:
            first_lines.append(line)
            if found := SERVING.match(line):
                yield SimpleNamespace(
                    process=process, port=int(found[1]), first_lines="".join(first_lines)
                )
                break
        else:
            raise AssertionError(first_lines)
    finally:
        process.kill()
        process.stdout.close()
        process.wait()


@pytest.fixture(scope="module")
def server(package) -> Iterator[SimpleNamespace]:
    with serving(package, "--confidence", "0.1", "--batch-size", "4") as one:
        yield one


# --- what it finds ----------------------------------------------------------------------------


def test_the_numbers_are_those_of_detect(package, server, tmp_path):
    write_picture(tmp_path / "a.png", seed=3)
    with Image.open(tmp_path / "a.png") as image:
        exif = Image.Exif()
        exif[0x0112] = 6  # lies on its side
        image.save(tmp_path / "b.jpg", exif=exif)
    for name, kind in (("a.png", "image/png"), ("b.jpg", "image/jpeg")):
        options = ("--input", name, "--output", f"{name} found", "--confidence", "0.1")
        done = run_detect(Path(sys.executable), package, *options, cwd=tmp_path)
        assert (done.status, done.error) == (0, "")
        report = json.loads((tmp_path / f"{name} found" / "detections.json").read_text("utf-8"))
        (expected,) = report["images"]
        body = (tmp_path / name).read_bytes()
        answer = ask(server.port, "POST", "/detect", body, {"Content-Type": kind})
        assert answer.status == 200
        del expected["file"]
        assert json.dumps(answer.json) == json.dumps(expected)  # digit for digit
        assert len(answer.json["detections"]) > 3
    assert (answer.json["width"], answer.json["height"]) == (90, 120)


def test_the_provider_is_named(server):
    health = ask(server.port, "GET", "/health", None, {}).json
    assert health["provider"] == "CPUExecutionProvider"
    assert (health["model"], health["batch_size"], health["confidence"]) == ("model.onnx", 4, 0.1)
    assert "Model: model.onnx in ONNX Runtime, CPUExecutionProvider" in server.first_lines


async def _request(port: int, body: bytes) -> int | str:
    head = f"POST /detect HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n"
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"{head}Content-Type: image/jpeg\r\nConnection: close\r\n\r\n".encode() + body)
        answer = await asyncio.wait_for(reader.read(), TIMEOUT_S)
        writer.close()
        return int(answer.split(b" ", 2)[1])
    except (OSError, asyncio.TimeoutError, IndexError) as error:
        return repr(error)


@pytest.mark.fault("P4-50")
def test_a_thousand_requests_at_once_are_answered_or_put_off(server, tmp_path):
    write_picture(tmp_path / "a.jpg")
    body = (tmp_path / "a.jpg").read_bytes()

    async def all_at_once() -> list[int | str]:
        return await asyncio.gather(*(_request(server.port, body) for _ in range(1000)))

    before = samples(ask(server.port, "GET", "/metrics", None, {}).body.decode())
    allow_many_connections()
    statuses = Counter(asyncio.run(all_at_once()))
    assert set(statuses) <= {200, 429}
    assert statuses[200] >= 64  # as many as may wait
    after = samples(ask(server.port, "GET", "/metrics", None, {}).body.decode())
    for status, count in statuses.items():
        key = f'detector_requests_total{{path="/detect",status="{status}"}}'
        assert after[key] - before.get(key, 0) == count
    images = after["detector_batch_size_sum"] - before["detector_batch_size_sum"]
    batches = after["detector_batch_size_count"] - before["detector_batch_size_count"]
    assert images == statuses[200]
    assert images / batches > 2  # they shared inferences
    assert ask(server.port, "POST", "/detect", body, JPEG).status == 200


# --- how it ends ------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.fault("P4-51")
def test_a_signal_ends_it_when_all_that_was_accepted_is_answered(package, tmp_path, number):
    write_picture(tmp_path / "a.jpg", 480, 640)
    body = (tmp_path / "a.jpg").read_bytes()
    with serving(package, "--batch-size", "2") as server:
        answers = [
            Answer(lambda: ask(server.port, "POST", "/detect", body, JPEG)) for _ in range(6)
        ]
        wait_until(lambda: _in_work(server.port) == 6)
        server.process.send_signal(number)
        assert [answer.get().status for answer in answers] == [200] * 6
        rest = server.process.stdout.read()
        assert server.process.wait(TIMEOUT_S) == 0
    assert rest.splitlines() == [
        "ending: accepted requests are answered; a second signal ends at once",
        "Ended; every accepted picture has its answer",
    ]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port))


def _in_work(port: int) -> int:
    return ask(port, "GET", "/health", None, {}).json["pictures_in_work"]


def test_a_second_signal_is_not_waited_for(package):
    with serving(package, "--body-timeout-s", "50") as server:
        head = b"POST /detect HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/jpeg\r\n"
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(head + b"Content-Length: 9\r\n\r\n")
            wait_until(lambda: ask(server.port, "GET", "/health", None, {}).status == 200)
            server.process.send_signal(signal.SIGTERM)
            assert "ending" in server.process.stdout.readline()
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(TIMEOUT_S) == 143


# --- how it starts, or does not ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--port", "http"], "--port: 'http' is not a whole number"),
        (["--port", "65536"], "--port: 65536 is not between 0 and 65535"),
        (["--port", "-1"], "--port: -1 is negative"),
        (["--port", "USED"], "is in use – end the program that uses it, or choose another"),
        (["--host", "203.0.113.9"], "--host 203.0.113.9: is no address of this machine"),
        (["--model", "missing.onnx"], "missing.onnx: no such file"),
        (["--model", "model.pth"], "model.pth: is no .onnx file"),
        (["--model", "damaged.onnx"], "damaged.onnx: cannot be loaded"),
        (["--classes", "unicorn"], "the classes are: car, Fuß"),
        (["--device", "tpu"], "--device: 'tpu' is unknown"),
        (["--batch-size", "0"], "--batch-size: 0 is not 1 or more"),
        (["--queue-size", "none"], "--queue-size: 'none' is not a whole number"),
        (["--max-mib", "0"], "--max-mib: 0 is not above 0"),
        (["--prot", "80"], "did you mean --port?"),
    ],
)
@pytest.mark.fault("P4-52")
def test_mistakes_are_one_line_and_status_2(package, tmp_path, options, message):
    (tmp_path / "damaged.onnx").write_bytes(b"damaged")
    with socket.create_server(("127.0.0.1", 0)) as used:
        port = str(used.getsockname()[1])
        options = [port if word == "USED" else word for word in options]
        done = run(
            package, *(() if "--port" in options else ("--port", "0")), *options, cwd=tmp_path
        )
    assert done.status == 2
    assert done.error.splitlines()[-1:] == [
        line for line in done.error.splitlines() if "error" in line
    ]
    assert message in done.error
    assert done.error.count("\n") == 0


@pytest.mark.fault("P4-37")
def test_cuda_asked_for_and_absent_is_an_error(package, tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    done = run(package, "--device", "cuda", "--port", "0", cwd=tmp_path)
    assert done.status == 2
    assert done.error.startswith("error: --device cuda: runs on CPUExecutionProvider instead")


def test_without_its_packages_the_command_that_installs_them_is_told(
    package, clean_python, tmp_path
):
    """In a Python that has what detect.py needs, and in one that has nothing at all."""
    expected = "error: fastapi: is not installed – run: pip install -r requirements-serve.txt\n"
    for python in ([str(clean_python), "-I"], [sys.executable, "-I", "-S"]):
        line = [*python, "-B", str(package / "serve.py")]
        done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (2, expected)


def test_help_loads_nothing_heavy_and_needs_nothing_installed(package, tmp_path):
    line = [sys.executable, "-I", "-S", "-X", "importtime", str(package / "serve.py"), "--help"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True)
    loaded = {line.rsplit("|", 1)[1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert done.returncode == 0
    assert "argparse" in loaded
    heavy = {"numpy", "cv2", "onnxruntime", "torch", "av", "scipy", "PIL", "fastapi", "uvicorn"}
    assert not loaded & heavy
    assert str(package) not in done.stdout


@pytest.mark.parametrize("content", ["def cut(", "a_name_cut_sh"])
def test_code_that_is_damaged_is_named(package, tmp_path, content):
    import shutil

    damaged = Path(shutil.copytree(package, tmp_path / "damaged"))
    (damaged / "phase3_tracking" / "backends.py").write_text(content)
    done = run(damaged, "--port", "0", cwd=tmp_path)
    assert done.status == 2
    assert done.error.startswith("error: phase3_tracking/backends.py: differs from its sha256")
    (damaged / "phase3_tracking" / "backends.py").write_bytes(
        (package / "phase3_tracking" / "backends.py").read_bytes()
    )
    (damaged / "phase4_deployment" / "package" / "serving" / "metrics.py").unlink()
    done = run(damaged, "--port", "0", cwd=tmp_path)
    assert done.error.endswith("is missing – see what else: detect.py --verify")


@pytest.mark.parametrize(
    ("host", "name", "expected"),
    [
        ("127.0.0.1", "localhost", True),
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "::1", True),
        ("127.0.0.1", "evil.example", False),
        ("127.0.0.1", "", False),
        ("0.0.0.0", "evil.example", True),
        ("Localhost", "localhost", True),
    ],
)
def test_only_a_server_for_everyone_answers_to_any_name(host, name, expected):
    assert serve.answers(host, name) is expected
