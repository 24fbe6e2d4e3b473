"""Files that are not audio, though their names say so."""

import gzip
import io
import zipfile

import pytest

from audiovae_jax.data.audio import audio_file
from audiovae_jax.data.formats import magic
from audiovae_jax.errors import DataError


def _zip():
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a.wav", bytes(100))
    return packed.getvalue()


CONTENTS = {
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "a Git LFS pointer .*git lfs pull"),
    "html": (b"\xef\xbb\xbf\n<!DOCTYPE html><html>404</html>", "an HTML page, .*download the file again"),
    "xml": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "an XML document"),
    "json": (b'{"error": "not found"}', "a JSON document"),
    "apple_double": (b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        ", "the metadata that macOS stores"),
    "zip": (_zip(), "a zip archive; unpack it"),
    "gzip": (gzip.compress(bytes(1000)), "compressed by gzip; unpack it"),
    "pdf": (b"%PDF-1.7\n", "a PDF document"),
    "jpeg": (b"\xff\xd8\xff\xe0\x00\x10JFIF", "a JPEG picture"),
    "zeros": (bytes(2000), "zeros where a file begins"),
}


@pytest.mark.parametrize("suffix", [".wav", ".mp3", ".flac", ".ogg", ".au"])
@pytest.mark.parametrize("kind", CONTENTS)
def test_a_file_that_is_not_audio_is_refused_by_what_it_is(tmp_path, kind, suffix):
    content, expected = CONTENTS[kind]
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"not audio .*: it is {expected}"):
        audio_file.probe(path)


@pytest.mark.parametrize(
    "content", [b"", b"R", b"RIFF\x00\x00", b"fLaC", b"OggS", b"ID3\x03", b"\xff\xfb\x90\x00", b"caff"]
)
def test_what_may_be_audio_is_not_called_otherwise(content):
    assert magic.content(content) is None
