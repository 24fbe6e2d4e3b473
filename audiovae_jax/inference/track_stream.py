"""A data set's track as a stream, which is what a codec takes."""

from audiovae_jax.data.audio import audio_file, deadline, stream
from audiovae_jax.data.audio.audio_file import AudioFile
from audiovae_jax.data.audio.stream import AudioStream
from audiovae_jax.data.sets.catalog import Audio, Excerpt
from audiovae_jax.errors import DataError


def open_track(audio: Audio, read_timeout: float = 0.0) -> AudioStream:
    """A track's audio in blocks; a file is opened once, and read as the codec reads it.

    Args:
      audio: of a track.
      read_timeout: seconds after which a read that does not answer is given up; 0 waits for ever.
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

    return AudioStream(audio.sample_rate, audio.frames, audio.channels, blocks, f"{audio.name}: the audio")
