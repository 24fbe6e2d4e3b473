"""Systems to evaluate: models, and common lossy codecs as baselines."""

import dataclasses
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
import soundfile

from audiovae_jax.data.audio import stream
from audiovae_jax.data.audio.stream import AudioStream
from audiovae_jax.data.formats import sound
from audiovae_jax.errors import ConfigError, DataError
from audiovae_jax.evaluation.latents import LatentStatistics
from audiovae_jax.inference.codec import Codec

_OPUS_RATE = 48000  # Hz, the rate that Opus decodes to
_MP3_RATES = (32000, 44100, 48000)  # Hz, of MPEG-1
# By kind: ffmpeg's encoder, and the suffix, libsndfile's format and subtype.
_KINDS = {"opus": ("libopus", ".opus", "OGG", "OPUS"), "mp3": ("libmp3lame", ".mp3", "MP3", "MPEG_LAYER_III")}
_MAX_KBPS = {"opus": 510, "mp3": 320}
_TIMEOUT = 3600.0  # seconds for one file


@dataclasses.dataclass(frozen=True)
class Made:
    """Facts about a reconstruction.

    The reconstruction is a file with the source's rate and length.

    Attributes:
      seconds: time that it took.
      columns: columns of the table that the system itself computes.
      latents: see `LatentStatistics.channels`; None for codecs.
    """

    seconds: float
    columns: dict[str, float]
    latents: dict[str, list[float]] | None = None


class System(Protocol):
    """The interface of systems to evaluate.

    Attributes:
      name: of its column in the table.
      description: in one line.
    """

    name: str
    description: str

    def reconstruct(self, source: AudioStream, target: Path, progress: Callable[[float], None]) -> Made:
        """Write the reconstruction of a stream to a `.wav`; raises DataError on failure."""


class Model:
    """A model as a system.

    Args:
      name: of its column.
      codec: the model.
      path: the model's path, for the description.
      mix: see `Codec.encode`.
    """

    def __init__(self, name: str, codec: Codec, path: str, *, mix: bool = False):
        self.name, self._codec, self._mix = name, codec, mix
        model = codec.model
        self.description = (
            f"{path}: {codec.sample_rate} Hz, {model.in_channels} channels, hop {model.hop_length}, "
            f"{model.latent_dim} latent channels, {codec.sample_rate / model.hop_length:.4g} frames a second; "
            f"fingerprint {codec.fingerprint}"
        )

    def reconstruct(self, source: AudioStream, target: Path, progress: Callable[[float], None]) -> Made:
        """Encode to the posterior's mean, decode, and write to `target`."""
        statistics = LatentStatistics.of(self._codec.model)
        start = time.perf_counter()
        made = self._codec.reconstruct_stream(source, mix=self._mix, watch=statistics.add)
        stream.write(made, target, progress)
        seconds = time.perf_counter() - start
        return Made(seconds, statistics.columns(source.length / source.sample_rate), statistics.channels())


class MissingCodecError(ConfigError):
    """No tool on this machine has the codec."""


class LossyCodec:
    """Opus or MP3 at a bit rate, by ffmpeg if available, else by libsndfile.

    Args:
      name: for example `opus24` for Opus at 24 kbit/s over all channels, or `mp3_128` for MP3 at 128 kbit/s.

    Raises:
      ConfigError: the name is invalid.
      MissingCodecError: neither tool has the codec.
    """

    def __init__(self, name: str):
        found = re.fullmatch(r"(opus|mp3)_?(\d+)", name)
        if not found or not 6 <= int(found[2]) <= _MAX_KBPS[found[1]]:
            raise ConfigError(
                f"--baselines: unknown {name!r}; give for example opus24, opus64 or mp3_128 (rates in kbit/s)"
            )
        self.name, self._kind, self._kbps = name, found[1], int(found[2])
        encoder, self._suffix, self._format, self._subtype = _KINDS[self._kind]
        self._ffmpeg = _ffmpeg_with(encoder)
        if self._ffmpeg is None and self._subtype not in soundfile.available_subtypes(self._format):
            raise MissingCodecError(f"{name}: there is neither an ffmpeg nor a libsndfile with {encoder}")
        tool = "ffmpeg" if self._ffmpeg else f"libsndfile {soundfile.__libsndfile_version__}"
        self.description = f"{self._kind} at {self._kbps} kbit/s by {tool}"

    def reconstruct(self, source: AudioStream, target: Path, progress: Callable[[float], None]) -> Made:
        """Encode to a file next to the target, decode it, and write to `target`."""
        if source.channels > 2:
            raise DataError(f"{source.name} has {source.channels} channels, but {self.name} is measured on one or two")
        start = time.perf_counter()
        rate = _OPUS_RATE if self._kind == "opus" or source.sample_rate not in _MP3_RATES else source.sample_rate
        input_path, coded = target.with_suffix(".input.wav"), target.with_suffix(self._suffix)
        try:
            stream.write(source.resampled(rate), input_path, lambda share: progress(share / 2))
            self._encode(input_path, coded)
            size = coded.stat().st_size
            decoded = stream.open_file(coded)
            if decoded.sample_rate != rate or decoded.channels != source.channels:
                raise DataError(
                    f"{source.name}: {self.name} returned {decoded.sample_rate} Hz, {decoded.channels} channels"
                )
            stream.write(
                _of_length(decoded.resampled(source.sample_rate), source.length),
                target,
                lambda s: progress(0.5 + s / 2),
            )
        finally:
            input_path.unlink(missing_ok=True)
            coded.unlink(missing_ok=True)
        seconds = time.perf_counter() - start
        return Made(seconds, {"bits_per_second": 8 * size * source.sample_rate / source.length})

    def _encode(self, source, target):
        if self._ffmpeg is None:
            self._encode_with_libsndfile(source, target)
            return
        command = [self._ffmpeg, "-nostdin", "-v", "error", "-y", "-i", str(source), "-c:a", _KINDS[self._kind][0]]
        command += ["-b:a", f"{self._kbps}k", str(target)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
        except subprocess.TimeoutExpired as error:
            raise DataError(f"{self.name}: ffmpeg did not finish within {_TIMEOUT:.0f} s") from error
        if done.returncode:
            raise DataError(f"{self.name}: ffmpeg failed: {done.stderr.strip()[-300:]}")

    def _encode_with_libsndfile(self, source, target):
        audio = stream.open_file(source)
        options = {"samplerate": audio.sample_rate, "channels": audio.channels, "format": self._format}
        options |= {"subtype": self._subtype, "compression_level": self._level(audio.channels)}
        options |= {"bitrate_mode": "CONSTANT"} if self._kind == "mp3" else {}
        try:
            with sound.open_sound(target, "w", **options) as file:
                for block in audio.blocks():
                    file.write(block)
        except soundfile.LibsndfileError as error:
            raise DataError(f"{self.name}: libsndfile failed: {error.error_string}") from error

    def _level(self, channels):
        """Return libsndfile's compression level.

        It is 0 for the highest bit rate of the codec, and 1 for the lowest.
        """
        low, high = (6, 256) if self._kind == "opus" else (32, 320)
        kbps = self._kbps / channels if self._kind == "opus" else self._kbps
        return min(1.0, max(0.0, (high - kbps) / (high - low)))


def baselines(names: list[str]) -> tuple[list[LossyCodec], list[str]]:
    """Return the available codecs of these names, and a line about each missing one.

    Raises:
      ConfigError: a name is invalid.
    """
    found, missing = [], []
    for name in names:
        try:
            found.append(LossyCodec(name))
        except MissingCodecError as error:
            missing.append(f"{error}; this system is left out")
    return found, missing


def named_models(given: list[str]) -> list[tuple[str, str]]:
    """Return `(name, path)` of models given as `path` or `name=path`.

    Raises:
      ConfigError: two models have the same name.
    """
    found = []
    for text in given:
        name, equals, path = text.partition("=")
        if not equals or "/" in name or Path(text).exists():
            name, path = Path(text).stem or text, text
        if name in dict(found):
            raise ConfigError(f"two models have the name {name!r}; give them names, as in ours={path}")
        found.append((name, path))
    return found


def _ffmpeg_with(encoder):
    """Return the path of an ffmpeg with this encoder, or None."""
    path = shutil.which("ffmpeg")
    if path is None:
        return None
    try:
        done = subprocess.run(
            [path, "-v", "error", "-encoders"], capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return path if re.search(rf"\b{encoder}\b", done.stdout) else None


def _of_length(audio, length):
    """Cut audio, or pad it with silence, to a length."""

    def blocks():
        left = length
        for block in audio.blocks():
            if left:
                yield block[:left]
            left -= min(left, len(block))
        while left:
            size = min(left, stream.BLOCK)
            yield np.zeros((size, audio.channels), np.float32)
            left -= size

    return dataclasses.replace(audio, length=length, blocks=blocks)
