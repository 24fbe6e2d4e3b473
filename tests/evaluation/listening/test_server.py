"""The page's server on the loopback, used by gradio's client and by a hostile one."""

import concurrent.futures
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import command_line
import numpy as np
import pytest
import soundfile
from conftest import SMALL_MODEL, random_variables

from audiovae_jax import AudioVAE, Codec, Latents, save_model
from audiovae_jax.errors import ConfigError
from audiovae_jax.evaluation.listening import server
from audiovae_jax.evaluation.listening.models import Models

pytest.importorskip("gradio", reason="the page needs gradio, from the extra ui")
gradio_client = pytest.importorskip("gradio_client", reason="comes with gradio")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:gradio")  # of pandas, which gradio uses

RATE = 8000


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    for seed, name in enumerate(("one", "two")):
        model = AudioVAE(**SMALL_MODEL)
        save_model(model, random_variables(model, seed), folder / "models" / name, sample_rate=RATE)
    for seed, length in ((0, 3001), (1, 2500)):
        audio = 0.3 * np.random.default_rng(seed).standard_normal((length, 2)).astype(np.float32)
        soundfile.write(folder / f"{seed}.wav", audio, RATE, subtype="FLOAT")
    (folder / "text.wav").write_text("no sound, but <b>text</b>")
    (folder / "secret.wav").write_bytes((folder / "0.wav").read_bytes())
    return folder


@pytest.fixture(scope="module")
def page(root):
    """`(url, its folder)`."""
    (root / "tmp").mkdir()
    with contextlib.ExitStack() as stack:
        # Other workers' servers have their folders in the usual place.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tempfile, "tempdir", str(root / "tmp"))
            url = stack.enter_context(server.running(Models(str(root / "models"), Codec.load), max_upload_mb=1))
        (folder,) = (root / "tmp").glob("audiovae_served_*")
        yield url.rstrip("/"), folder
    assert not folder.exists()


@pytest.fixture
def client(page, tmp_path):
    made = gradio_client.Client(page[0], verbose=False, download_files=tmp_path / "downloads", analytics_enabled=False)
    yield made
    made.close()


def ask(url, body=None, headers=None):
    """Return `(status, text)` of a raw request."""
    given = {"Content-Type": "application/json"} | (headers or {})
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, given), timeout=30) as answer:
            return answer.status, answer.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")


def called(url, name, data):
    """Return the stream of events of a page's function, without gradio's client."""
    status, text = ask(f"{url}/gradio_api/call/{name}", {"data": data, "session_hash": "raw"})
    if status != 200:
        return text
    return ask(f"{url}/gradio_api/call/{name}/{json.loads(text)['event_id']}")[1]


def samples(path):
    return soundfile.read(path, dtype="float32")[0]


def test_the_functions_by_the_client_give_what_the_commands_give(client, root, tmp_path):
    file, codec = gradio_client.handle_file(root / "0.wav"), Codec.load(root / "models" / "one")
    codec.encode_file(root / "0.wav", tmp_path / "expected.safetensors")
    codec.reconstruct_file(root / "0.wav", tmp_path / "expected.wav")
    assert client.predict(api_name="/models") == ["one", "two"]
    numbers, audio, difference, latents = client.predict(model="one", file=file, mix=False, api_name="/reconstruct")
    assert Path(latents).read_bytes() == (tmp_path / "expected.safetensors").read_bytes()
    np.testing.assert_array_equal(samples(audio), samples(tmp_path / "expected.wav"))
    np.testing.assert_array_equal(samples(difference), samples(root / "0.wav") - samples(audio))
    assert numbers["mse"] == pytest.approx(np.square(samples(difference), dtype=np.float64).mean(), rel=1e-6)
    latents = client.predict(model="one", file=file, mix=False, api_name="/encode")
    assert Path(latents).read_bytes() == (tmp_path / "expected.safetensors").read_bytes()
    decoded = client.predict(model="one", latents=gradio_client.handle_file(latents), api_name="/decode")
    np.testing.assert_array_equal(samples(decoded), samples(tmp_path / "expected.wav"))
    _, turned = client.predict(model="one", file=file, turns={"1": 2.0}, mix=False, api_name="/turn_channels")
    z, plain = Latents.load(turned).z, Latents.load(latents).z
    assert (z != plain).any(axis=(0, 1)).tolist() == [False, True, False]
    second = gradio_client.handle_file(root / "1.wav")
    audio, _ = client.predict(model="one", first=file, second=second, position=0.5, mix=False, api_name="/interpolate")
    assert len(samples(audio)) == 2500


@pytest.mark.slow
def test_the_readme_s_client(page, root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate(("song.wav", "other.wav")):
        shutil.copy(root / f"{i}.wav", name)
    text = (Path(server.__file__).parent / "README.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert block.count("http://127.0.0.1:7860") == 1
    namespace = {}
    exec(block.replace("http://127.0.0.1:7860", page[0]), namespace)
    namespace["client"].close()
    assert namespace["metrics"]["snr_db"] is not None
    assert soundfile.info(namespace["wav"]).frames == 3001
    endpoints = json.loads(ask(f"{page[0]}/gradio_api/info")[1])["named_endpoints"]
    assert set(re.findall(r'api_name="(/\w+)"', block)) == set(endpoints)


def test_mistakes_give_a_message(client, page, root):
    def message(**given):
        with pytest.raises(Exception, match=".") as caught:
            client.predict(**given)
        assert "Traceback" not in str(caught.value)
        assert str(page[1]) not in str(caught.value)
        return str(caught.value)

    song, text = (gradio_client.handle_file(root / name) for name in ("0.wav", "text.wav"))
    said = message(model="one", file=text, mix=False, api_name="/reconstruct")
    assert said.startswith("text.wav: not audio that can be read")
    said = message(model="../../etc", file=song, mix=False, api_name="/encode")
    assert "there is no model '../../etc' here" in said
    said = message(model="one", file=song, turns={"9": 1}, mix=False, api_name="/turn_channels")
    assert "no latent channel '9'" in said
    said = message(model="<img src=x onerror=alert(1)>", file=song, mix=False, api_name="/encode")
    assert "&lt;img" in said
    assert "<img" not in said


def test_any_suffix_is_read_by_its_content_and_no_upload_gives_a_traceback(client, tmp_path, capfd):
    soundfile.write(tmp_path / "a.bin", np.random.default_rng(0).uniform(-0.5, 0.5, (4000, 2)), RATE, format="WAV")
    (tmp_path / "b.amr").write_bytes(b"#!AMR\nno audio that is read")
    wav, other = (gradio_client.handle_file(tmp_path / name) for name in ("a.bin", "b.amr"))
    assert client.predict(model="one", file=wav, mix=False, api_name="/encode")
    with pytest.raises(Exception, match=r"b\.amr: not audio that can be read"):
        client.predict(model="one", file=other, mix=False, api_name="/encode")
    assert "Traceback" not in capfd.readouterr().err


def test_no_path_outside_is_reached_through_the_api(page, root):
    url, folder = page
    secret, model = str(root / "secret.wav"), str(root / "models" / "one" / "model.json")
    song = ask_upload(url, root / "0.wav")
    link = Path(song).parent / "link.wav"
    link.symlink_to(secret)
    for path in (
        secret, model, f"{folder}/../{root.name}/secret.wav", "../../../../etc/passwd", "/etc/passwd", "~/.bashrc",
        f"{Path(song).parent}/../../../etc/passwd", "/proc/self/maps", f"{song}/../../no.wav", str(folder), "\0", "",
        str(link),
    ):  # fmt: skip
        file = {"path": path, "meta": {"_type": "gradio.FileData"}}
        for name, data in (
            ("reconstruct", ["one", file, False]), ("encode", ["one", file, False]), ("decode", ["one", file]),
            ("encode", ["one", path, False]), ("turn_channels", ["one", file, {}, False]),
            ("turn_channels", ["one", {"path": song, "meta": {"_type": "gradio.FileData"}}, file, False]),
            ("interpolate", ["one", file, file, 0.5, False]), ("encode", [file, file, False]),
        ):  # fmt: skip
            answer = called(url, name, data)
            assert "event: complete" not in answer, (path, name)
            assert "root:" not in answer
        assert ask(f"{url}/gradio_api/file={urllib.request.quote(path)}")[0] in (400, 403, 404), path
    file = {"path": song, "meta": {"_type": "gradio.FileData"}}
    for name in ("..", "../models/one", str(root / "models" / "one"), "one/../two", "", None, ["one"], {"a": 1}):
        assert "event: complete" not in called(url, "encode", [name, file, False]), name
    assert "event: complete" in called(url, "encode", ["one", file, False])  # so the other requests could have


@pytest.mark.parametrize("foreign", ["http://127.0.0.1:1/a.wav", "https://example.org/a.wav", " http://a", "file:///a"])
def test_nothing_is_fetched_for_anybody(page, monkeypatch, foreign):
    processing = pytest.importorskip("gradio.processing_utils")
    url, fetched = page[0], []

    async def fetch(*given, **options):
        fetched.append(given)
        raise OSError("not to be reached")

    monkeypatch.setattr(processing, "async_ssrf_protected_download", fetch)
    file = {"path": foreign, "meta": {"_type": "gradio.FileData"}}
    assert "event: complete" not in called(url, "encode", ["one", file, False])
    assert ask(f"{url}/gradio_api/file={urllib.request.quote(foreign)}")[0] == 403
    assert fetched == []


def test_nothing_but_the_page_is_there(page):
    url, _ = page
    for path in (
        "proxy=http://127.0.0.1:1/",
        "vibe-code",
        "dev/reload",
        "deep_link?session_hash=raw",
        "openapi.json/x",
    ):
        assert ask(f"{url}/gradio_api/{path}")[0] == 404, path
    for path in ("monitoring", "docs", "openapi.json", "runs"):
        assert ask(f"{url}/{path}")[0] == 404, path
    before = set(Path(tempfile.gettempdir()).iterdir())
    form = (
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.mp4"\r\n\r\n' + b"x" * 5000 + b"\r\n--b--\r\n"
    )
    for path in ("process_recording", "component_server", "vibe-edit"):
        status, _ = ask(f"{url}/gradio_api/{path}", form, {"Content-Type": "multipart/form-data; boundary=b"})
        assert status == 404
    assert set(Path(tempfile.gettempdir()).iterdir()) == before  # where gradio would write it, and never remove it
    request = urllib.request.Request(f"{url}/gradio_api/queue/join", b"{}", method="PUT")
    with pytest.raises(urllib.error.HTTPError, match="405") as caught:
        urllib.request.urlopen(request, timeout=30)
    caught.value.close()


def test_the_page_loads_nothing_from_elsewhere_and_is_in_no_frame_of_others(page):
    with urllib.request.urlopen(page[0], timeout=30) as answer:
        text, policy = answer.read().decode(), answer.headers["content-security-policy"]
    assert "fonts.g" not in text
    assert {"default-src 'self' data: blob:", "frame-ancestors 'self'"} < set(policy.split("; "))


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost:7860", 200), ("127.0.0.1", 200), ("[::1]:7860", 200), ("LOCALHOST", 200), ("evil.example:7860", 400),
     ("127.0.0.1.evil.example", 400), ("evil.example:127.0.0.1", 400)],
)  # fmt: skip
def test_other_names_of_this_machine_are_refused_on_the_loopback(page, host, status):
    assert ask(f"{page[0]}/", headers={"Host": host})[0] == status


def test_requests_of_forms_and_long_ones_are_refused(page):
    url = page[0]
    kinds = ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=b", "")
    for path, body in (
        ("queue/join", {"fn_index": 0, "data": [], "session_hash": "raw"}),
        ("call/models", {"data": []}),
    ):
        for kind in kinds:  # browsers send these for pages of other sites without asking first
            assert ask(f"{url}/gradio_api/{path}", body, {"Content-Type": kind})[0] == 422, kind
        assert ask(f"{url}/gradio_api/{path}", {**body, "data": ["x" * (1 << 20)]})[0] == 413


def test_a_gradio_that_the_guard_does_not_wrap_is_not_started(root, monkeypatch):
    gradio = pytest.importorskip("gradio")
    launch = gradio.Blocks.launch
    monkeypatch.setattr(gradio.Blocks, "launch", lambda self, app_kwargs, **options: launch(self, **options))
    with (
        pytest.raises(ConfigError, match="cannot be secured"),
        server.running(Models(str(root / "models"), Codec.load)),
    ):
        pass


def test_no_upload_is_converted_by_gradio(page, root, monkeypatch):
    processing = pytest.importorskip("gradio.processing_utils")
    url, converted = page[0], []
    monkeypatch.setattr(processing.AudioSegment, "from_file", lambda *given, **options: converted.append(given))
    uploaded = ask_upload(url, Path("playlist.m3u8"), b"#EXTM3U")
    file = {"path": uploaded, "meta": {"_type": "gradio.FileData"}}
    dependencies = json.loads(ask(f"{url}/config")[1])["dependencies"]
    assert len(dependencies) > 10
    for dependency in dependencies:
        data = [file for _ in dependency["inputs"]]
        body = {"fn_index": dependency["id"], "data": data, "session_hash": "convert"}
        ask(f"{url}/gradio_api/run/predict", body)
        if ask(f"{url}/gradio_api/queue/join", body)[0] == 200:
            ask(f"{url}/gradio_api/queue/data?session_hash=convert")
    assert converted == []


def ask_upload(url, path, content=None):
    content = path.read_bytes() if content is None else content
    boundary = "----page"
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="{path.name}"\r\n\r\n'
    body = head.encode() + content + f"\r\n--{boundary}--\r\n".encode()
    status, text = ask(f"{url}/gradio_api/upload", body, {"Content-Type": f"multipart/form-data; boundary={boundary}"})
    return json.loads(text)[0] if status == 200 else status


def await_files(folder, is_so):
    for _ in range(300):
        if is_so(sorted(folder.rglob("*"))):
            return
        time.sleep(0.05)
    raise AssertionError(sorted(folder.rglob("*")))


def test_other_sites_pages_are_refused_before_gradio_answers_them(page):
    url, _ = page
    for headers in ({"Origin": "http://localhost:3000"}, {"Sec-Fetch-Site": "cross-site"}):
        for path in ("config", "gradio_api/info"):
            assert ask(f"{url}/{path}", headers=headers)[0] == 403
        assert ask(f"{url}/gradio_api/queue/join", {}, headers=headers)[0] == 403
    asked = {"Origin": "http://localhost:3000", "Access-Control-Request-Method": "POST"}
    request = urllib.request.Request(f"{url}/gradio_api/queue/join", headers=asked, method="OPTIONS")
    with pytest.raises(urllib.error.HTTPError, match="403") as caught:
        urllib.request.urlopen(request, timeout=30)
    caught.value.close()
    own = urllib.request.Request(f"{url}/config", headers={"Origin": url})
    with urllib.request.urlopen(own, timeout=30) as answer:
        assert answer.headers["Access-Control-Allow-Origin"] in (None, url)


def test_an_upload_that_is_too_long_is_refused_and_leaves_nothing(page, root):
    url, folder = page
    before = sorted(folder.rglob("*"))
    assert ask_upload(url, root / "0.wav", b"x" * ((1 << 20) + 1)) == 413
    each = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.wav"\r\n\r\n' + b"x" * 900_000 + b"\r\n"
    several = {"Content-Type": "multipart/form-data; boundary=b"}
    assert ask(f"{url}/gradio_api/upload", 2 * each + b"--b--\r\n", several)[0] == 413  # each short enough
    text = each.replace(b'; filename="a.wav"', b"")
    assert ask(f"{url}/gradio_api/upload", text + b"--b--\r\n", several)[0] == 400  # it would be kept in memory
    with contextlib.suppress(urllib.error.URLError, ConnectionError):  # an answer while this is still sending
        assert ask_upload(url, root / "0.wav", b"x" * (3 << 20)) == 413
    assert sorted(folder.rglob("*")) == before
    head = b"POST /gradio_api/upload HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
    head += b"Content-Type: multipart/form-data; boundary=b\r\n\r\n"
    form = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.wav"\r\n\r\n' + b"x" * 100_000
    with socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])), timeout=30) as connection:
        connection.sendall(head + b"%x\r\n%b\r\n" % (len(form), form))
        await_files(folder, lambda now: now != before)  # and then it leaves
    await_files(folder, lambda now: now == before)
    connection = socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])), timeout=30)
    with connection, contextlib.suppress(ConnectionError):
        for chunk in [form, *[b"x" * 100_000] * 20]:
            connection.sendall((head if chunk is form else b"") + b"%x\r\n%b\r\n" % (len(chunk), chunk))
        assert b" 413 " in connection.recv(100)
    await_files(folder, lambda now: now == before)
    assert isinstance(ask_upload(url, Path("../../evil.wav"), b"x" * 1000), str)
    assert not list(folder.parent.glob("evil.wav"))


def pressed(url, config, button, data, visitor):
    """Return the data that a button's handler returns."""
    (target,) = (part["id"] for part in config["components"] if part["props"].get("elem_id") == button)
    (handler,) = (one["id"] for one in config["dependencies"] if [target, "click"] in map(list, one["targets"]))
    status, text = ask(
        f"{url}/gradio_api/queue/join",
        {"fn_index": handler, "data": data, "session_hash": visitor, "trigger_id": target},
    )
    assert status == 200, text
    events = ask(f"{url}/gradio_api/queue/data?session_hash={visitor}")[1]
    (done,) = (json.loads(line[6:]) for line in events.splitlines() if '"process_completed"' in line)
    return done["output"]


def test_results_of_the_buttons(page, root):
    url, _ = page
    config = json.loads(ask(f"{url}/config")[1])
    (clip,) = pressed(url, config, "file_example", [], "buttons")["data"]
    clip = {"path": clip["path"], "meta": {"_type": "gradio.FileData"}}
    song = {"path": ask_upload(url, root / "0.wav"), "meta": {"_type": "gradio.FileData"}}
    for button, data, titles in (
        ("reconstruct", ["one", song, False], ["Original", "Reconstruction", "Difference"]),
        ("interpolate", ["one", song, clip, 0.5, False], ["First", "Between", "Second"]),
    ):
        (shown,) = pressed(url, config, button, data, "buttons")["data"]
        assert re.findall(r'aria-pressed="\w+">(.*?)<', shown) == titles
        addresses = re.findall(r'(?:src|href)="(gradio_api/[^"]*)"', shown)
        assert len(addresses) >= len(titles) + 2
        for address in addresses:
            assert ask(f"{url}/{address}")[0] == 200, address
        assert ("scorecard" in shown) == (button == "reconstruct")
    _, hint = pressed(url, config, "channels", ["one", song, False], "buttons")["data"]
    assert "sliders" in hint
    for button, data, control in (
        ("reconstruct", ["one", None, False], "Audio"),
        ("interpolate", ["one", song, None, 0.5, False], "Second file"),
    ):
        assert f'under "{control}"' in pressed(url, config, button, data, "buttons")["error"]
    assert "customElements.define" in ask(url)[1]


@pytest.mark.slow
def test_two_at_once_get_each_their_own(page, root, tmp_path):
    expected = {}
    for i, name in enumerate(("one", "two")):
        Codec.load(root / "models" / name).reconstruct_file(root / f"{i}.wav", tmp_path / f"{i}.wav")
        expected[i] = samples(tmp_path / f"{i}.wav")

    def user(i):
        made = gradio_client.Client(page[0], verbose=False, download_files=tmp_path / f"u{i}", analytics_enabled=False)
        file = gradio_client.handle_file(root / f"{i}.wav")
        try:
            return [
                samples(made.predict(model=("one", "two")[i], file=file, mix=False, api_name="/reconstruct")[1])
                for _ in range(2)
            ]
        finally:
            made.close()

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        results = list(pool.map(user, range(2)))
    for i in range(2):
        for audio in results[i]:
            np.testing.assert_array_equal(audio, expected[i])


@pytest.mark.slow
def test_results_are_removed_with_their_session(page, root, tmp_path):
    before = set((page[1] / "made").glob("*"))
    visitor = gradio_client.Client(page[0], verbose=False, download_files=tmp_path, analytics_enabled=False)
    file = gradio_client.handle_file(root / "0.wav")
    visitor.predict(model="one", file=file, mix=False, api_name="/encode")
    (made,) = set((page[1] / "made").glob("*")) - before
    assert list(made.rglob("*.safetensors"))
    visitor.close()
    for _ in range(300):
        if not made.exists():
            break
        time.sleep(0.1)
    assert not made.exists()


def test_an_address_that_is_taken_and_a_gradio_that_is_missing(page, root, monkeypatch):
    models = Models(str(root / "models"), Codec.load)
    port = int(page[0].rsplit(":", 1)[1])
    with pytest.raises(ConfigError, match=f"--port={port} is not available"), server.running(models, port=port):
        pass
    message = "--host=300.0.0.1 .*is not available"
    with pytest.raises(ConfigError, match=message), server.running(models, host="300.0.0.1"):
        pass
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ConfigError, match=re.escape("pip install -e '.[ui]'")):
        server.require_gradio()


def test_variables_of_the_environment_open_nothing(root, monkeypatch):
    monkeypatch.setenv("GRADIO_ALLOWED_PATHS", "/")
    monkeypatch.setenv("GRADIO_SERVER_NAME", "0.0.0.0")
    with server.running(Models(str(root / "models"), Codec.load)) as url:
        assert "127.0.0.1" in url
        assert ask(f"{url}gradio_api/file=/etc/hostname")[0] == 403
        assert "GRADIO_ALLOWED_PATHS" not in os.environ
    assert os.environ["GRADIO_ALLOWED_PATHS"] == "/"


def test_one_visitor_cannot_fill_the_queue(root):
    free = threading.Event()

    def load(path):
        free.wait(60)
        return Codec.load(path)

    with server.running(Models(str(root / "models"), load)) as url:
        url = url.rstrip("/")
        file = {"path": ask_upload(url, root / "0.wav"), "meta": {"_type": "gradio.FileData"}}
        config = json.loads(ask(f"{url}/config")[1])["dependencies"]
        encode, models = (next(d["id"] for d in config if d["api_name"] == name) for name in ("encode", "models"))

        def join(visitor, function=encode, data=("one", file, False)):
            body = {"fn_index": function, "data": data, "session_hash": visitor}
            return ask(f"{url}/gradio_api/queue/join", body)

        try:
            assert join("a")[0] == 200
            time.sleep(1)  # until it runs, and no longer waits
            assert [join("a")[0] for _ in range(2)] == [200, 200]
            status, text = join("a")
            assert status == 503
            assert "of your requests are waiting already" in text
            assert join("a", models, [])[0] == 200  # which needs no model
            assert [join(f"b{i}")[0] for i in range(7)] == [200] * 6 + [503]
            assert ask(f"{url}/gradio_api/call/encode", {"data": ["one", file, False]})[0] == 503
        finally:
            free.set()
        assert ask(f"{url}/gradio_api/queue/data?session_hash=a")[1].count("process_completed") == 4
        assert join("a")[0] == 200


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="there are no such locks here")
def test_only_leftovers_of_a_killed_server_are_removed(root, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    names = ("audiovae_served_dead", "audiovae_served_young", "audiovae_served_live", "other_dead")
    dead, young, live, other = (tmp_path / name for name in names)
    for folder in (dead, young, live, other):
        (folder / "made").mkdir(parents=True)
    (tmp_path / "audiovae_served_link").symlink_to(other)
    (tmp_path / "audiovae_served_file").touch()
    for path in (dead, live, other, tmp_path / "audiovae_served_file"):
        os.utime(path, (1, 1))
    held = server._hold(live)
    try:
        server._remove_orphans()
        assert server._hold(live) is None
    finally:
        os.close(held)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "audiovae_served_file", "audiovae_served_link", "audiovae_served_live", "audiovae_served_young", "other_dead",
    ]  # fmt: skip
    os.utime(young, (1, 1))
    before = set(tmp_path.iterdir())
    with server.running(Models(str(root / "models"), Codec.load)):
        assert not young.exists()
        (folder,) = set(tmp_path.iterdir()) - before
        os.utime(folder, (1, 1))
        server._remove_orphans()
        assert folder.exists()


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_the_command_ends_by_a_signal_and_leaves_nothing(root, tmp_path, stop):
    environment = {**command_line.environment(), "TMPDIR": str(tmp_path)}
    line = command_line.line("serve", root / "models", "--port=0")
    ignored = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # these tests may run under nohup, which the page respects
    process = subprocess.Popen(line, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    signal.signal(signal.SIGHUP, ignored)
    try:
        url = process.stdout.readline().split()[0].rstrip("/")
        assert url.startswith("http://127.0.0.1:")
        uploaded = ask_upload(url, root / "0.wav")
        assert uploaded.startswith(str(tmp_path / "audiovae_served_"))
        file = {"path": uploaded, "meta": {"_type": "gradio.FileData"}}
        ask(f"{url}/gradio_api/call/reconstruct", {"data": ["one", file, False]})  # busy when the signal arrives
        time.sleep(0.5)
        process.send_signal(stop)
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
    assert not list(tmp_path.glob("audiovae_served_*"))


@pytest.mark.slow
def test_the_command_ends_though_a_thread_does_not(root, tmp_path):
    code = (
        "import sys, threading; from audiovae_jax.commands import cli\n"
        "threading.Thread(target=threading.Event().wait).start()\n"
        f"sys.argv = ['serve', {str(root / 'models')!r}, '--port=0']\n"
        "cli.main('serve')\n"
    )
    environment = {**command_line.environment(), "TMPDIR": str(tmp_path)}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline().startswith("http://127.0.0.1:")
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
    assert not list(tmp_path.glob("audiovae_served_*"))
