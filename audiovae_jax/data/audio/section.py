"""A file within a file: a member of an archive on this machine or behind a URL."""

import dataclasses
from pathlib import Path

from audiovae_jax.data.audio.remote import RemoteFile
from audiovae_jax.data.formats.reader import Reader
from audiovae_jax.errors import printable


@dataclasses.dataclass(frozen=True)
class Section:
    """A section of `size` bytes of another file, from `offset` on.

    Attributes:
      archive: the file that contains the section.
      offset, size: in bytes.
      name: of the member.
    """

    archive: Path | RemoteFile
    offset: int
    size: int
    name: str

    def __str__(self) -> str:
        return f"{printable(self.archive)}/{self.name}"

    @property
    def suffix(self) -> str:
        return Path(self.name).suffix

    def open(self) -> "SectionReader":
        """Return a seekable reader of the section's bytes; the caller closes it."""
        if isinstance(self.archive, Path):
            return SectionReader(open(self.archive, "rb"), self.offset, self.size)
        return SectionReader(self.archive.open(), self.offset, self.size)


class SectionReader(Reader):
    """A reader of a section of another reader."""

    def __init__(self, whole, offset: int, size: int):
        super().__init__(size)
        self._whole, self._offset = whole, offset

    @property
    def error(self) -> Exception | None:
        return getattr(self._whole, "error", None)

    def expect(self, size: int):
        """Set the number of bytes to fetch at once in the next reads."""
        getattr(self._whole, "expect", lambda size: None)(size)

    def readinto(self, buffer):
        view = memoryview(buffer).cast("B")[: max(0, self._size - self._position)]
        self._whole.seek(self._offset + self._position)
        done = self._whole.readinto(view)
        self._position += done
        return done

    def close(self):
        self._whole.close()
        super().close()
