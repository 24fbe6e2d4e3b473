"""VOC: files in blocks, of which libsndfile reads the first to the end of the file, block headers included."""

from typing import BinaryIO

from audiovae_jax.data.formats.reader import read_at

MARK = b"Crea"  # "Creative Voice File"
_SOUND = (1, 2, 3, 9)  # types of blocks: samples, more samples, silence, and samples in the newer layout
_MAX_BLOCKS = 1000


def is_split(file: BinaryIO) -> bool:
    """Return whether the audio of a VOC file is in several blocks."""
    offset, found = int.from_bytes(read_at(file, 20, 2), "little"), 0
    for _ in range(_MAX_BLOCKS):
        header = read_at(file, offset, 4)
        if len(header) < 4 or header[0] == 0:
            break
        found += header[0] in _SOUND
        offset += 4 + int.from_bytes(header[1:], "little")
    return found > 1
