"""A real S3 server on this machine, and a proxy in front of it that can be slow or disconnected."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from audiovae_jax.storage import bucket_path
from audiovae_jax.storage.bucket_path import BucketPath

_SERVE = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", int(sys.argv[1]), verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()  # ends with the process that has started it, however that ends
"""
_KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}


class Server:
    """A server in its own process; with port 0 on any free port."""

    def __init__(self, port: int = 0):
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SERVE, str(port)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env={**os.environ, **_KEYS},
        )  # fmt: skip
        line = self._process.stdout.readline()
        assert line.strip(), "the S3 server has not started"
        self.port = int(line)

    def upload(self, folder: Path, bucket: str):
        """Upload every file under `folder`, under its relative path."""
        import boto3

        client = boto3.client(
            "s3", endpoint_url=f"http://127.0.0.1:{self.port}", region_name="us-east-1",
            aws_access_key_id="key", aws_secret_access_key="secret",
        )  # fmt: skip
        client.create_bucket(Bucket=bucket)
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                client.put_object(Bucket=bucket, Key=path.relative_to(folder).as_posix(), Body=path.read_bytes())

    def require_keys(self, required: bool):
        """Start or stop to reject unknown keys."""
        import requests

        url = f"http://127.0.0.1:{self.port}/moto-api/reset-auth"
        requests.post(url, data="0" if required else "inf", timeout=30).raise_for_status()

    def kill(self):
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()


class Proxy:
    """Forwards connections to a port, and delays every request by `delay` seconds."""

    def __init__(self, port: int, delay: float = 0.0):
        self._target, self.delay = port, delay
        self._open, self._lock = set(), threading.Lock()
        self._listener, self.port = None, 0
        self.restore()

    def restore(self):
        """Listen again on the same port."""
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=128)
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def cut(self):
        """End every connection, and refuse new ones."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener):
        while True:
            try:
                near, _ = listener.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                return
            with self._lock:
                self._open |= {near, far}
            threading.Thread(target=self._pass, args=(near, far, True), daemon=True).start()
            threading.Thread(target=self._pass, args=(far, near, False), daemon=True).start()

    def _pass(self, source, sink, is_request):
        with contextlib.suppress(OSError):
            while piece := source.recv(1 << 16):
                if is_request and self.delay:
                    time.sleep(self.delay)
                sink.sendall(piece)
        with self._lock:
            self._open -= {source, sink}
        for connection in (source, sink):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


def use(monkeypatch, port: int):
    """Let `s3://` mean the server at a port, without this machine's settings."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    for name, value in _KEYS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def require_packages():
    """Skip where there is no S3 server or client."""
    for name in ("s3fs", "moto", "flask", "flask_cors", "boto3"):
        pytest.importorskip(name, reason=f"needs {name}, of audiovae-jax[test]")


@pytest.fixture(scope="session")
def s3_server() -> Iterator[Server]:
    """A server without buckets."""
    require_packages()
    server = Server()
    yield server
    server.kill()


@pytest.fixture
def bucket(s3_server, monkeypatch, tmp_path_factory) -> Iterator[BucketPath]:
    """An empty bucket, and the settings to reach it by its `s3://` URL."""
    use(monkeypatch, s3_server.port)
    bucket_path._filesystem.cache_clear()
    name = f"bucket-{uuid.uuid4()}"
    s3_server.upload(tmp_path_factory.mktemp("nothing"), name)
    yield BucketPath(f"s3://{name}")
    bucket_path._filesystem.cache_clear()
