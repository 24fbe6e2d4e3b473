"""The guard answers only requests that the page needs."""

import asyncio
import json

import pytest

from audiovae_jax.evaluation.listening.guard import Guard


@pytest.fixture
def ask(tmp_path):
    """Returns a function that sends a request to a guard. The guarded application answers 200 with its input."""

    async def app(scope, receive, send):
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    def asked(method, path, body=b"", headers=()):
        guard = Guard(app, folder=tmp_path, most_upload=1000)
        pieces = [body[i : i + 70_000] for i in range(0, len(body), 70_000)] or [b""]
        messages = [
            {"type": "http.request", "body": piece, "more_body": i + 1 < len(pieces)} for i, piece in enumerate(pieces)
        ]
        sent = []

        async def receive():
            return messages.pop(0) if messages else {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)

        given = [(b"host", b"127.0.0.1:7860"), *headers]
        asyncio.run(guard({"type": "http", "method": method, "path": path, "headers": given}, receive, send))
        return sent[0]["status"], sent[1]["body"], dict(sent[0]["headers"])

    return asked


def test_the_page_passes_and_may_load_nothing_from_elsewhere(ask):
    for path in (
        "/", "/config", "/assets/index.js", "/theme.css", "/gradio_api/info", "/gradio_api/queue/data",
        "/gradio_api/heartbeat/6f9619ff-8b86-d011-b42d-00cf4fc964ff", "/gradio_api/call/encode/0a1b",
    ):  # fmt: skip
        status, _, headers = ask("GET", path)
        assert status == 200, path
        assert b"default-src 'self'" in headers[b"content-security-policy"]


@pytest.mark.parametrize(
    "path",
    ["/gradio_api/proxy=http://127.0.0.1/", "/monitoring", "/gradio_api/vibe-code", "/docs", "/openapi.json",
     "/gradio_api/deep_link", "/custom_component/1/x/y/z", "/gradio_api/stream/a/1/2/playlist.m3u8", "/runs",
     "/gradio_api/dev/reload", "/login", "/gradio_api/file/etc/passwd", "/file=/etc/passwd", "//etc/passwd"],
)  # fmt: skip
def test_the_page_has_no_unneeded_endpoints(ask, path):
    assert ask("GET", path)[0] == 404


@pytest.mark.parametrize(
    "path", ["/gradio_api/component_server", "/gradio_api/process_recording", "/gradio_api/vibe-edit", "/", "/config"]
)
def test_only_what_the_page_sends_is_taken(ask, path):
    assert ask("POST", path, b"{}")[0] == 404
    assert ask("PUT", path, b"{}")[0] == 404


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"sec-fetch-site": "same-origin"}, 200),
        ({"sec-fetch-site": "none", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}, 200),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),  # another port of this machine
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"}, 403),
        ({"origin": "http://127.0.0.1:7860"}, 200),
        ({"origin": "http://127.0.0.1:3000"}, 403),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "https://evil.example", "sec-fetch-site": "same-origin"}, 200),  # of a proxy with another name
    ],
)
def test_other_sites_pages_get_nothing(ask, headers, status):
    given = [(name.encode(), value.encode()) for name, value in headers.items()]
    for method, path, body in (
        ("GET", "/", b""), ("GET", "/config", b""), ("GET", "/gradio_api/file=/tmp/song.wav", b""),
        ("POST", "/gradio_api/queue/join", b"{}"), ("POST", "/gradio_api/run/predict", b"{}"),
    ):  # fmt: skip
        answered, _, sent = ask(method, path, body, given)
        assert answered == status, path
        assert not any(name.lower().startswith(b"access-control") for name in sent)
    if status == 403:
        assert ask("POST", "/gradio_api/upload", b"", given)[0] == 403
        assert ask("OPTIONS", "/gradio_api/queue/join", b"", given)[0] == 403


def test_links_to_the_page_itself_may_be_followed(ask):
    given = [(b"sec-fetch-site", b"cross-site"), (b"sec-fetch-mode", b"navigate"), (b"sec-fetch-dest", b"document")]
    for method, path, status in (("GET", "/", 200), ("POST", "/gradio_api/reset", 403), ("GET", "/config", 403)):
        assert ask(method, path, b"", given)[0] == status


def test_valid_requests_are_passed_on_and_long_or_invalid_ones_are_not(ask):
    body = json.dumps({"data": ["a" * 200_000, {"path": "/tmp/page/a.wav"}]}).encode()
    assert ask("POST", "/gradio_api/queue/join", body)[:2] == (200, body)
    assert ask("POST", "/gradio_api/queue/join", b'"' + b"x" * (1 << 20) + b'"')[0] == 413
    assert ask("POST", "/gradio_api/queue/join", b"nonsense")[0] == 400
    assert ask("POST", "/gradio_api/queue/join", b"[" * 100_000)[0] == 400


@pytest.mark.parametrize("url", ["http://127.0.0.1/a.wav", "HTTPS://example.org/a.wav", " http://a", "file:///etc/x"])
def test_nothing_is_fetched_for_anybody(ask, url):
    body = json.dumps({"data": [{"deep": [{"path": url, "meta": {"_type": "gradio.FileData"}}]}]}).encode()
    for path in ("/gradio_api/queue/join", "/gradio_api/call/reconstruct", "/gradio_api/call/v2/reconstruct"):
        assert ask("POST", path, body)[0] == 400
