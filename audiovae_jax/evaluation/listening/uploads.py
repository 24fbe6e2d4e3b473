"""Restrict uploads to files, with limits per request and on disk usage."""

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path

_FORM = 1 << 16  # bytes of a request in addition to its files
_MAX_BYTES_HELD = 16  # limit of all uploads, in requests of the largest size
_MIN_FILE = 1 << 16  # minimum bytes that a file counts as, to limit the number of small files
_FREE = 1 << 30  # bytes to keep free on the disk
_RESULTS = "made"
Receive = Callable[[], Awaitable[dict]]


class Uploads:
    """Check of upload requests while they are received.

    Args:
      folder: folder that the files are written to.
      most: maximum bytes of the files of a request.
    """

    def __init__(self, folder: Path, most: int):
        self._folder, self._most = folder, most
        self._coming = 0  # bytes of the requests being read

    @contextlib.asynccontextmanager
    async def admitted(
        self, headers: Mapping[bytes, str], receive: Receive
    ) -> AsyncIterator[tuple[Receive, tuple[int, str] | None]]:
        """A context for reading a request, which yields `(receive, refusal)`.

        `receive` enforces the limits, without relying on the declared length. Exceeding them raises starlette's
        MultiPartException. Reading after the visitor has left raises it too, so that gradio removes the partial upload.
        `refusal` is `(status, text)` if the request is refused, otherwise None.
        """
        text = headers.get(b"content-length", "")
        length = int(text) if text.isascii() and text.isdigit() and len(text) < 20 else self._most + _FORM
        length = min(length, self._most + _FORM)
        self._coming += length
        try:
            boundary = _boundary(headers)
            if boundary is None:
                yield receive, (400, "upload files as a form (multipart/form-data)")
            elif not await asyncio.to_thread(self._has_room):
                yield receive, (507, "there is no space for more files now; try again later")
            else:
                yield self._counted(receive, boundary), None
        finally:
            self._coming -= length

    def _has_room(self):
        held = self._coming
        for place, folders, files in os.walk(self._folder):
            if place == str(self._folder) and _RESULTS in folders:
                folders.remove(_RESULTS)
            for name in files:
                with contextlib.suppress(OSError):  # already removed
                    held += max(_MIN_FILE, os.lstat(os.path.join(place, name)).st_size)
        return (
            held <= _MAX_BYTES_HELD * (self._most + _FORM)
            and shutil.disk_usage(self._folder).free >= _FREE + self._coming
        )

    def _counted(self, receive, boundary):
        from starlette.formparsers import MultiPartException

        parts, size, more = _Parts(boundary), 0, True

        async def counted():
            nonlocal size, more
            message = await receive()
            if not more:
                return message
            if message["type"] != "http.request":
                raise MultiPartException("the visitor has left")
            body, more = message.get("body", b""), message.get("more_body", False)
            size += len(body)
            if size > self._most + _FORM:
                # Gradio answers 413 to this wording.
                raise MultiPartException(
                    f"more than the maximum allowed size of {self._most >> 20} MB; upload a shorter file"
                )
            parts.write(body)
            return message

        return counted


class _Parts:
    """Check of a form's parts while they are received.

    A part that is not a file is an error, since it would be held in memory.
    """

    def __init__(self, boundary):
        from python_multipart.multipart import MultipartParser

        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._field,
                "on_header_value": self._value,
                "on_header_end": self._end,
                "on_headers_finished": self._require_file,
            },
        )

    def write(self, data):
        from python_multipart.exceptions import FormParserError
        from starlette.formparsers import MultiPartException

        try:
            self._parser.write(data)
        except FormParserError as error:
            raise MultiPartException("the upload is not a valid form") from error

    def _begin(self):
        self._disposition = self._name = self._text = b""

    def _field(self, data, start, end):
        self._name += data[start:end]

    def _value(self, data, start, end):
        self._text += data[start:end]

    def _end(self):
        if self._name.lower() == b"content-disposition":
            self._disposition = self._text
        self._name = self._text = b""

    def _require_file(self):
        from python_multipart.multipart import parse_options_header
        from starlette.formparsers import MultiPartException

        _, options = parse_options_header(self._disposition)
        if options.get(b"name") != b"files" or b"filename" not in options:
            raise MultiPartException("only files can be uploaded")


def _boundary(headers):
    from python_multipart.multipart import parse_options_header

    kind, options = parse_options_header(headers.get(b"content-type", ""))
    return (options.get(b"boundary") or None) if kind == b"multipart/form-data" else None
