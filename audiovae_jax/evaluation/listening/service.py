"""The page's operations, on models by name and on uploaded files only."""

import contextlib
import dataclasses
import logging
import os
import threading
import traceback
from pathlib import Path
from typing import Any

import numpy as np

from audiovae_jax.data.audio import stream, synthesis
from audiovae_jax.errors import DataError, UserError
from audiovae_jax.evaluation.listening import latent_edits, listening
from audiovae_jax.evaluation.listening.listening import Progress, Reconstructed, Recording
from audiovae_jax.evaluation.listening.models import Models
from audiovae_jax.evaluation.listening.sessions import Gone, Session, Sessions
from audiovae_jax.inference.codec import Codec
from audiovae_jax.inference.latents import Latents

FILE, SECOND = "Audio", "Second file"  # labels of the page's controls, used in errors
_EXAMPLE = (44100, 10, 2)  # Hz, seconds and channels of an example clip
_NAME = 80  # maximum bytes of an input's name in a result's name, which may contain two names and a suffix


class Service:
    """The page's operations, run one at a time to bound the memory.

    Most methods take `visitor` (the key of the visitor's session), `model` (a name), `file` (an upload), `mix` (see
    `Codec.encode`) and `progress`. They raise `UserError`, with a message that names files without their folders.

    Args:
      models: the available models.
      sessions: the visitors' sessions.
    """

    def __init__(self, models: Models, sessions: Sessions):
        self.models, self.sessions = models, sessions
        self._lock = threading.Lock()

    def reconstruct(self, visitor: str, model: str, file: Any, mix: bool, progress: Progress) -> Reconstructed:
        """Reconstruct, plot and measure a file.

        The session stores the result as `reconstructed`.
        """
        with self._work(visitor, model, progress) as (session, codec, watched):
            path = self.sessions.uploaded(file)
            if path.suffix.lower() == latent_edits.SUFFIX:
                raise DataError(f'{path.name}: not audio; latents are for "Edit latents" and "Interpolate"')
            result = listening.reconstruct(codec, path, session.fresh_folder("reconstructed"), watched, mix=bool(mix))
            session.memory["reconstructed"] = result
            session.memory["latents"] = (_asked(codec, path, mix), result.latents)
            return result

    def encode(self, visitor: str, model: str, file: Any, mix: bool, progress: Progress) -> Path:
        """Encode a file. The result equals the output of the command `encode`."""
        with self._work(visitor, model, progress) as (session, codec, watched):
            return self._latents(session, codec, file, mix, watched)[1]

    def decode(self, visitor: str, model: str, file: Any, progress: Progress) -> Path:
        """Decode a file of latents. The result equals the output of the command `decode`."""
        with self._work(visitor, model, progress) as (session, codec, watched):
            path = self.sessions.uploaded(file)
            if path.suffix.lower() != latent_edits.SUFFIX:
                raise DataError(f"{path.name} is not a file of latents, which end in {latent_edits.SUFFIX}")
            latent_edits.require_latents(codec, path)
            audio = session.fresh_folder("decoded") / f"{path.stem}.wav"
            codec.decode_file(path, audio, progress=lambda share: watched(share, "decoding"))
            return audio

    def interpolate(
        self, visitor: str, model: str, first: Any, second: Any, position: float, mix: bool, progress: Progress
    ) -> tuple[Path, Path]:
        """Interpolate two files' latents.

        Return audio and latents; the session stores them as `between`.
        """
        with self._work(visitor, model, progress) as (session, codec, watched):
            position = latent_edits.number(position, "the position", 0.0, 1.0)
            ends = [
                self._latents(
                    session, codec, file, mix, lambda s, text, i=i: watched(0.35 * (i + s), text), f"end {i}", control
                )
                for i, (file, control) in enumerate(((first, FILE), (second, SECOND)))
            ]
            between = latent_edits.interpolate(codec, ends[0][0], ends[1][0], position)
            name = f"{_short(first)}-{_short(second)}-{position:.2f}"
            return self._decoded(session, codec, between, "between", name, "between", watched)

    def channels(self, visitor: str, model: str, file: Any, mix: bool, progress: Progress) -> list[tuple[int, float]]:
        """Return `(number, standard deviation)` of all latent channels, largest first."""
        with self._work(visitor, model, progress) as (session, codec, watched):
            spread = latent_edits.deviations(self._latents(session, codec, file, mix, watched)[0])
            return [(int(i), float(spread[i])) for i in np.argsort(-spread, kind="stable")]

    def turn_channels(
        self, visitor: str, model: str, file: Any, turns: Any, mix: bool, progress: Progress
    ) -> tuple[Path, Path]:
        """Edit latent channels, see `latent_edits.turn`.

        The session stores the result as `turned`.
        """
        with self._work(visitor, model, progress) as (session, codec, watched):
            latents, _ = self._latents(session, codec, file, mix, lambda s, text: watched(0.5 * s, text))
            turned = latent_edits.turn(latents, turns)
            return self._decoded(session, codec, turned, "turned", f"{_short(file)}-turned", "edited", watched)

    def untouched(self, visitor: str, model: str, file: Any, mix: bool, progress: Progress) -> Recording:
        """Decode a file's unedited latents. The session caches the last result."""
        with self._work(visitor, model, progress) as (session, codec, watched):
            asked = _asked(codec, self.sessions.uploaded(file), mix)
            last, recording = session.memory.get("untouched", (None, None))
            if last != asked or not recording.path.is_file():
                latents, _ = self._latents(session, codec, file, mix, lambda s, text: watched(0.3 * s, text))
                folder = session.fresh_folder("untouched")
                audio, _ = latent_edits.decode(
                    codec, latents, folder, f"{_short(file)}-untouched", lambda s, text: watched(0.3 + 0.6 * s, text)
                )
                recording = listening.listen("untouched", audio, folder, lambda s, text: watched(0.9 + 0.1 * s, text))
                session.memory["untouched"] = asked, recording
            return recording

    def source(self, visitor: str, model: str, file: Any, title: str, progress: Progress) -> Recording:
        """Return an uploaded file for listening: its audio, or its decoded latents."""
        if Path(str(file)).suffix.lower() == latent_edits.SUFFIX:
            return dataclasses.replace(self.untouched(visitor, model, file, False, progress), title=title)
        with self._work(visitor, model, progress) as (session, _, watched):
            return listening.listen(title, self.sessions.uploaded(file), session.fresh_folder(title), watched)

    def example(self, number: int) -> Path:
        """Return an example clip of generated music, written once per number."""
        path = self.sessions.folder / "made" / "examples" / f"example_{number}.wav"
        if not path.exists():
            rate, seconds, channels = _EXAMPLE
            audio = synthesis.music(np.random.default_rng(number), seconds * rate, rate, channels)
            path.parent.mkdir(parents=True, exist_ok=True)
            stream.write(stream.of_array(audio, rate), path)
        return path

    def wait(self, seconds: float):
        """Wait for the running operation to end, at most `seconds`."""
        if self._lock.acquire(timeout=seconds):
            self._lock.release()

    @contextlib.contextmanager
    def _work(self, visitor, model, progress):
        session = self.sessions.session(visitor)
        watched = session.watched(progress)
        try:
            with self._lock:
                watched(0.0, "loading the model")
                yield session, self.models.codec(model), watched
        except (UserError, OSError) as error:
            if session.is_gone:  # the error may come from the removed folder
                raise Gone from error
            if isinstance(error, UserError):
                raise type(error)(self.sessions.public(str(error))) from error
            raise DataError(f"the server cannot write: {error.strerror or type(error).__name__}") from error
        except Exception as error:  # unexpected, e.g. from a library
            where = traceback.extract_tb(error.__traceback__)[-1]
            text = f"{type(error).__name__}: {str(error)[:500]!r}, at {where.filename}:{where.lineno}"
            logging.getLogger(__name__).error("a request failed (%s)", text)
            raise DataError("the request failed; the reason is in the server's log") from error

    def _latents(
        self, session: Session, codec: Codec, file, mix, progress, kind="latents", control=FILE
    ) -> tuple[Latents, Path]:
        """Return the latents of an uploaded file and their path.

        The session caches the last result.
        """
        path = self.sessions.uploaded(file, control)
        for place in (kind, "latents"):
            asked, kept = session.memory.get(place, (None, None))
            if asked == _asked(codec, path, mix) and kept.is_file():
                return Latents.load(kept), kept
        latents, kept = latent_edits.latents_of(codec, path, session.fresh_folder(kind), progress, mix=bool(mix))
        session.memory[kind] = (_asked(codec, path, mix), kept)
        return latents, kept

    def _decoded(self, session, codec, latents, kind, name, title, progress):
        folder = session.fresh_folder(kind)
        audio, kept = latent_edits.decode(codec, latents, folder, name, lambda s, text: progress(0.7 + 0.2 * s, text))
        recording: Recording = listening.listen(title, audio, folder, lambda s, text: progress(0.9 + 0.1 * s, text))
        session.memory[kind] = recording
        return audio, kept


def _asked(codec, path, mix):
    return codec.fingerprint, path, bool(mix)


def _short(file):
    return os.fsencode(Path(str(file)).stem)[:_NAME].decode(errors="ignore")
