"""Opens a data set's track as a stream for a codec."""

from audiovae_jax.data.audio import audio_file, deadline, stream
from audiovae_jax.data.audio.audio_file import AudioFile
from audiovae_jax.data.audio.stream import AudioStream
from audiovae_jax.data.sets.catalog import Audio, Excerpt
from audiovae_jax.errors import DataError


def open_track(audio: Audio, read_timeout: float = 0.0) -> AudioStream:
    """Return a track's audio as a stream.

    A file is opened once and read sequentially.

    Args:
      audio: the track's audio.
      read_timeout: seconds after which a read times out; 0 for no limit.
    """
    start, inner = 0, audio
    while isinstance(inner, Excerpt):
        start, inner = start + inner.start, inner.audio

    def read():
        if isinstance(inner, AudioFile):
            yield from audio_file.read_blocks(inner, stream.BLOCK, start, start + audio.frames)
            return
        for first in range(0, audio.frames, stream.BLOCK):
            yield audio.read(first, min(stream.BLOCK, audio.frames - first))

    def blocks():
        reading = read()
        try:
            while (block := deadline.within(read_timeout, next, reading, None)) is not None:
                yield block
        except deadline.TimedOutError as error:
            raise DataError(f"{audio.name}: {error}") from error

    return stream.of_audio(audio, blocks)
