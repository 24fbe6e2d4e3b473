"""The same crops from Google's storage: a server of its kind on this machine, through gcsfs."""

import contextlib
import http.server
import json

import numpy as np
import pytest
import soundfile

from audiovae_jax.data.audio import synthesis
from audiovae_jax.data.feeding import pipeline
from configs import base

requests = pytest.importorskip("requests", reason="needs requests, which gcsfs brings")
pytest.importorskip("gcsfs", reason="needs gcsfs, of audiovae-jax[gcs]")
server = pytest.importorskip("gcp_storage_emulator.server", reason="needs gcp-storage-emulator")

RATE = 22050


@pytest.fixture
def bucket(monkeypatch):
    """Google's storage with an empty bucket of this name, without keys: where it takes uploads."""
    # It serves one connection at a time, and gcsfs keeps several.
    monkeypatch.setattr(http.server, "HTTPServer", http.server.ThreadingHTTPServer)
    running = server.create_server("127.0.0.1", 0, in_memory=True, default_bucket="bucket")
    running.start()
    port = running._api._httpd.server_address[1]
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    # gcsfs asks Google of what kind a bucket is, over gRPC, which the server has not.
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    yield f"http://127.0.0.1:{port}/upload/storage/v1/b/bucket/o"
    with contextlib.suppress(Exception):
        running.stop()


def _open(root):
    config = base.get_config().data
    config.update({"root": root, "crop_length": 4096, "sample_rate": RATE, "index": False, "min_seconds": 0.0})
    config.retry_seconds = 5.0
    return pipeline.open_data(config, batch_size=4, seed=0)


def test_a_folder_and_a_manifest_give_the_crops_of_the_same_on_disk(bucket, tmp_path):
    def upload(name):
        url = f"{bucket}?uploadType=media&name=set/{name}"
        requests.post(url, data=(tmp_path / name).read_bytes(), timeout=20).raise_for_status()

    for i, name in enumerate(("a.wav", "b/c.flac", "b/d.ogg")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        soundfile.write(tmp_path / name, 0.5 * synthesis.music(np.random.default_rng(i), 3 * RATE, RATE, 2), RATE)
        upload(name)
    (tmp_path / "list.jsonl").write_text("".join(json.dumps({"path": n}) + "\n" for n in ("a.wav", "b/c.flac")))
    upload("list.jsonl")
    for name in ("", "/list.jsonl"):
        here, away = _open(f"{tmp_path}{name}"), _open(f"gs://bucket/set{name}")
        assert here.fingerprint == away.fingerprint
        for index in range(12):
            np.testing.assert_array_equal(away.train[index], here.train[index])
