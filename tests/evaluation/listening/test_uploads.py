"""Uploads are files within the size limit, accepted while there is disk space."""

import asyncio
import shutil

import pytest

from audiovae_jax.evaluation.listening import uploads
from audiovae_jax.evaluation.listening.uploads import Uploads

formparsers = pytest.importorskip("starlette.formparsers", reason="comes with gradio, from the extra ui")
pytest.importorskip("python_multipart", reason="comes with gradio")

MOST = 100_000
FORM = {b"content-type": "multipart/form-data; boundary=here"}


def part(content, disposition='form-data; name="files"; filename="a.wav"', extra=""):
    head = f"--here\r\nContent-Disposition: {disposition}\r\n{extra}\r\n"
    return head.encode() + content + b"\r\n--here--\r\n"


def read(made, body, headers=FORM, size=10_000, breaks=False):
    """Return a request's refusal, or its bytes and the exception that ends them."""
    pieces = [body[i : i + size] for i in range(0, len(body), size)]
    messages = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    messages[-1]["more_body"] = breaks
    messages.append({"type": "http.disconnect"})

    async def receive():
        return messages.pop(0)

    async def run():
        async with made.admitted(headers, receive) as (counted, refusal):
            if refusal is not None:
                return refusal
            seen = b""
            while True:
                try:
                    message = await counted()
                except formparsers.MultiPartException as error:
                    return seen, error.message
                if message["type"] == "http.disconnect":
                    return seen, None
                seen += message["body"]

    return asyncio.run(run())


@pytest.fixture
def made(tmp_path):
    return Uploads(tmp_path, MOST)


def test_a_file_passes_as_it_is(made):
    for size in (7, 10_000):
        body = part(bytes(range(256)) * 20)
        assert read(made, body, size=size) == (body, None)


def test_bytes_are_counted_whatever_the_headers_say(made):
    for length in (None, "10", str(10**9), "9" * 50, "-1", "\u0663"):
        headers = FORM if length is None else FORM | {b"content-length": length}
        assert read(made, part(b"x"), headers)[1] is None
        seen, error = read(made, part(b"x" * 300_000), headers)
        assert len(seen) <= MOST + (1 << 16)
        assert "maximum allowed size" in error


@pytest.mark.parametrize(
    ("disposition", "extra"),
    [('form-data; name="files"', ""), ('form-data; name="other"; filename="a.wav"', ""), ("form-data", ""),
     ('form-data; name="files"; filename="a.wav"', 'Content-Disposition: form-data; name="x"\r\n'),
     ('form-data; name="files"; filename="a.wav"', f"X: {'y' * 9000}\r\n")],
)  # fmt: skip
@pytest.mark.parametrize("size", [13, 10_000])
def test_values_that_are_not_files_are_refused_early(made, disposition, extra, size):
    seen, error = read(made, part(b"secret" * 5000, disposition, extra), size=size)
    assert error is not None
    assert b"secret" not in seen


def test_invalid_forms_are_refused(made):
    for kind in ("", "application/json", "multipart/form-data", "text/plain; boundary=here"):
        assert read(made, part(b"x"), {b"content-type": kind})[0] == 400, kind
    assert "not a valid form" in read(made, b"nonsense, and more of it")[1]


def test_an_upload_that_is_broken_off_is_an_error(made):
    body = part(b"x" * 20_000)
    assert read(made, body[:15_000], breaks=True) == (body[:15_000], "the visitor has left")


def test_there_is_room_for_so_much_and_no_more(made, tmp_path, monkeypatch):
    each = MOST + (1 << 16)
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "result.wav").write_bytes(b"x" * 40 * each)  # not an upload
    for i in range(15):
        assert read(made, part(b"x"))[1] is None, i
        (tmp_path / f"{i}.wav").write_bytes(b"x" * each)
    (tmp_path / "empty.wav").touch()
    assert read(made, part(b"x"))[0] == 507
    (tmp_path / "0.wav").unlink()
    assert read(made, part(b"x"))[1] is None
    assert made._coming == 0
    made._coming = each  # of another's request
    assert read(made, part(b"x"))[0] == 507
    made._coming = 0
    monkeypatch.setattr(uploads, "_FREE", shutil.disk_usage(tmp_path).total)
    assert read(made, part(b"x"))[0] == 507
