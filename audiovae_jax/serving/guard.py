"""What stands before the page's server: only what the page needs is answered, and nothing is fetched for anybody."""

import contextlib
import json
import os
import re
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from typing import Any

from audiovae_jax.serving.uploads import Uploads

_PAGE = r"/|/(?:config|theme\.css|favicon\.ico|robots\.txt|manifest\.json|(?:assets|static|svelte)/.+)"
_API = r"/gradio_api/(?:info|openapi\.json|app_id|startup-events|theme\.css|upload_progress|queue/(?:data|status)"
_READ = re.compile(rf"(?:{_PAGE}|{_API}|heartbeat/[\w-]+|call/\w+/[\w-]+|file=.+))/?", re.DOTALL)
_UPLOAD = "/gradio_api/upload"
_WRITTEN = re.compile(r"/gradio_api/(?:upload|run/predict|queue/join|call/\w+|call/v2/\w+|cancel|reset)/?")
_FILE = "/gradio_api/file="
_SCHEME = re.compile(r"\s*[A-Za-z][A-Za-z0-9+.-]+:")
_MOST_JSON = 1 << 20  # bytes
_CORS = b"access-control-"
# The page's own scripts are within it; nothing comes from elsewhere.
_POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)
_HEADERS = [
    (b"content-security-policy", _POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
]
_App = Callable[[dict, Callable[[], Awaitable[dict]], Callable[[dict], Awaitable[None]]], Awaitable[None]]


class Guard:
    """ASGI middleware, which answers requests of the page itself and of programs, and none of other sites' pages.

    Args:
      app: what it stands before.
      folder: the only one whose files are served.
      most_upload: bytes of the files of a request, see `Uploads`.
      hosts: names that a request may address, in lower case, which keeps other sites' pages out of a server on the
        loopback (DNS rebinding); None for any.
    """

    def __init__(self, app: _App, *, folder: Path, most_upload: int, hosts: Collection[str] | None):
        self._app, self._folder = app, os.path.join(os.path.realpath(folder), "")
        self._uploads, self._hosts = Uploads(Path(folder), most_upload), hosts

    async def __call__(self, scope: dict, receive: Callable, send: Callable):
        """Answer a request that is refused; hand on the others."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._refusal(scope, headers)
        read = contextlib.nullcontext((receive, refusal))
        if refusal is None and scope["method"] == "POST":
            if scope["path"].startswith(_UPLOAD):
                read = self._uploads.admitted(headers, receive)
            else:
                read = contextlib.nullcontext(await _checked(receive))

        async def with_headers(message):
            if message["type"] == "http.response.start":
                # Gradio lets other sites' pages read, wherever it does not take the server for one of the loopback.
                own = [one for one in message.get("headers", ()) if not one[0].lower().startswith(_CORS)]
                message = {**message, "headers": [*own, *_HEADERS]}
            await send(message)

        async with read as (receive, refusal):
            if refusal is None:
                await self._app(scope, receive, with_headers)
            else:
                await _answer(with_headers, *refusal)

    def _refusal(self, scope, headers) -> tuple[int, str] | None:
        """`(status, text)`, or None for what may pass."""
        path, method = scope["path"], scope["method"]
        if self._hosts is not None and _host(headers.get(b"host", "")) not in self._hosts:
            return 403, "this page answers to its own address alone; open the one that the server printed"
        if _is_foreign(scope, headers):
            return 403, "this page does not answer to those of other sites"
        if method in ("GET", "HEAD"):
            if not _READ.fullmatch(path):
                return 404, "not found"
            if path.startswith(_FILE) and not self._is_served(path.removeprefix(_FILE)):
                return 403, "no such file of this page"
        elif method == "POST":
            if not _WRITTEN.fullmatch(path):
                return 404, "not found"
            kind = headers.get(b"content-type", "").partition(";")[0].strip().lower()
            if not path.startswith(_UPLOAD) and kind != "application/json":  # others need no leave of a browser's
                return 415, "what is asked for is sent as application/json"
        else:
            return 405, "not allowed"
        return None

    def _is_served(self, name):
        try:
            return not _SCHEME.match(name) and os.path.realpath(name).startswith(self._folder)
        except (OSError, ValueError):  # a name that cannot be
            return False


def _is_foreign(scope, headers):
    """Whether a browser asks for another site's page; links to this one may be followed."""
    site = headers.get(b"sec-fetch-site")
    if site is None:  # of a program, or of a browser that has come here without TLS
        origin = headers.get(b"origin")
        return origin is not None and origin.partition("://")[2].lower() != headers.get(b"host", "").lower()
    is_link = headers.get(b"sec-fetch-mode") == "navigate" and headers.get(b"sec-fetch-dest") == "document"
    is_page = scope["method"] == "GET" and scope["path"] == "/"
    return site not in ("same-origin", "none") and not (is_link and is_page)


async def _answer(send, status, text):
    body = text.encode()
    plain = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": plain})
    await send({"type": "http.response.body", "body": body})


def _host(text):
    """The name in `name:port`, or in `[address]:port`."""
    return re.sub(r":\d*$", "", text).strip("[]").lower()


async def _checked(receive) -> tuple[Callable, tuple[int, str] | None]:
    """A request's JSON, given again to who comes after; or a refusal, if it is long, or names a file elsewhere."""
    parts, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            break
        parts.append(message.get("body", b""))
        size, more = size + len(parts[-1]), message.get("more_body", False)
        if size > _MOST_JSON:
            return receive, (413, "the request is too long")
    body = b"".join(parts)
    try:
        is_foreign = bool(body) and _names_url(json.loads(body))
    except (ValueError, RecursionError):
        return receive, (400, "the request is no JSON")
    if is_foreign:
        return receive, (400, "files are uploaded here, and not fetched from elsewhere")
    given = False

    async def again():
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again, None


def _names_url(value: Any) -> bool:
    """Whether there is a `path` with a scheme anywhere in what was sent."""
    if isinstance(value, dict):
        path = value.get("path")
        return (isinstance(path, str) and bool(_SCHEME.match(path))) or any(map(_names_url, value.values()))
    return isinstance(value, list) and any(map(_names_url, value))
