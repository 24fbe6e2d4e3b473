"""Middleware that admits only requests of the page and never fetches URLs."""

import contextlib
import json
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from audiovae_jax.evaluation.listening.uploads import Uploads

_PAGE = r"/|/(?:config|theme\.css|favicon\.ico|robots\.txt|manifest\.json|(?:assets|static|svelte)/.+)"
_API = r"/gradio_api/(?:info|openapi\.json|app_id|startup-events|theme\.css|upload_progress|queue/(?:data|status)"
_READ = re.compile(rf"(?:{_PAGE}|{_API}|heartbeat/[\w-]+|call/\w+/[\w-]+|file=.+))/?", re.DOTALL)
_UPLOAD = "/gradio_api/upload"
_WRITTEN = re.compile(r"/gradio_api/(?:upload|run/predict|queue/join|call/\w+|call/v2/\w+|cancel|reset)/?")
_SCHEME = re.compile(r"\s*[A-Za-z][A-Za-z0-9+.-]+:")
_MAX_JSON = 1 << 20  # bytes
# The page's scripts are inline. Nothing is loaded from other origins.
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
    """ASGI middleware that refuses requests from pages of other sites.

    Requests of the page itself and of programs are admitted. Gradio itself refuses other files than uploads and
    results, unknown methods, and calls of other content types.

    Args:
      app: the wrapped application.
      folder: folder of the uploads.
      most_upload: maximum size in bytes of the files of a request, see `Uploads`.
    """

    def __init__(self, app: _App, *, folder: Path, most_upload: int):
        self._app, self._uploads = app, Uploads(folder, most_upload)

    async def __call__(self, scope: dict, receive: Callable, send: Callable):
        """Answer a refused request, and pass all others on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
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
                message = {**message, "headers": [*message.get("headers", ()), *_HEADERS]}
            await send(message)

        async with read as (receive, refusal):
            if refusal is None:
                await self._app(scope, receive, with_headers)
            else:
                await _answer(with_headers, *refusal)

    def _refusal(self, scope, headers) -> tuple[int, str] | None:
        """Return `(status, text)` of a refusal, or None if the request is admitted."""
        if _is_foreign(scope, headers):
            return 403, "this page does not accept requests from other sites"
        if not (_READ if scope["method"] in ("GET", "HEAD") else _WRITTEN).fullmatch(scope["path"]):
            return 404, "not found"
        return None


def _is_foreign(scope, headers):
    """Return whether a browser sends the request for another site.

    Links to this page are allowed.
    """
    site = headers.get(b"sec-fetch-site")
    if site is None:  # from a program, or from a browser without TLS
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


async def _checked(receive) -> tuple[Callable, tuple[int, str] | None]:
    """Read and check a request's JSON.

    Returns:
      `(receive, refusal)`. `receive` replays the request. `refusal` is `(status, text)` if the body is too long, is not
      JSON, or names a URL as a file. Otherwise it is None.
    """
    parts, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            break
        parts.append(message.get("body", b""))
        size, more = size + len(parts[-1]), message.get("more_body", False)
        if size > _MAX_JSON:
            return receive, (413, "the request is too long")
    body = b"".join(parts)
    try:
        is_foreign = bool(body) and _names_url(json.loads(body))
    except (ValueError, RecursionError):
        return receive, (400, "the request is not JSON")
    if is_foreign:
        return receive, (400, "upload files; this page does not fetch URLs")
    given = False

    async def again():
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again, None


def _names_url(value: Any) -> bool:
    """Return whether the value contains a `path` with a URL scheme at any depth."""
    if isinstance(value, dict):
        path = value.get("path")
        return (isinstance(path, str) and bool(_SCHEME.match(path))) or any(map(_names_url, value.values()))
    return isinstance(value, list) and any(map(_names_url, value))
