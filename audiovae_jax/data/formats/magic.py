"""Files that are not audio, recognised by their first bytes."""

SIZE = 512  # bytes that `content` needs

_LFS = b"version https://git-lfs.github.com/spec/"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_PAGES = (
    (b"<!doctype html", "an HTML page"),
    (b"<html", "an HTML page"),
    (b"<head", "an HTML page"),
    (b"<?xml", "an XML document"),
    (b"<error", "an XML document"),
    (b'{"', "a JSON document"),
    (b"[{", "a JSON document"),
)
_SIGNATURES = (
    (b"\x00\x05\x16\x07", "the metadata that macOS stores in ._ files; delete it"),
    (b"\x00\x05\x16\x00", "the metadata that macOS stores in ._ files; delete it"),
    (b"PK\x03\x04", "a zip archive; unpack it"),
    (b"\x1f\x8b", "compressed by gzip; unpack it"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it"),
    (b"Rar!\x1a\x07", "a rar archive; unpack it"),
    (b"MThd", "a MIDI file, which has notes instead of sound"),
    (b"%PDF-", "a PDF document"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"\x89PNG\r\n", "a PNG picture"),
    (b"GIF8", "a GIF picture"),
)


def content(beginning: bytes) -> str | None:
    """Return what a file is that is not audio as it stands, with the remedy.

    Args:
      beginning: its first `SIZE` bytes, or all of a shorter file.

    Returns:
      A phrase such as "a zip archive; unpack it", or None if the bytes are not recognised.
    """
    if beginning.startswith(_LFS):
        return "a Git LFS pointer instead of the file; run `git lfs pull`"
    text = beginning.removeprefix(_BYTE_ORDER_MARK).lstrip().lower()
    for start, name in _PAGES:
        if text.startswith(start):
            return f"{name}, as a failed download leaves it; download the file again"
    for signature, name in _SIGNATURES:
        if beginning.startswith(signature):
            return name
    if beginning and not any(beginning):
        return "zeros where a file begins; copy the file again"
    return None
