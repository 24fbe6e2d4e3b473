"""Samples: fixed validation audio and its reconstructions, for listening."""

import dataclasses
from typing import Any

import jax
import numpy as np

from audiovae_jax.evaluation.waveform import WaveformErrors
from audiovae_jax.inference.chunked import ChunkedModel
from audiovae_jax.models.audio_vae import AudioVAE

_MAX_NAME = 60  # characters, in titles


@dataclasses.dataclass(frozen=True)
class Sample:
    """An excerpt of audio and its reconstruction.

    Attributes:
      name: the file and the position in it.
      original, reconstruction: `[T, C]`.
    """

    name: str
    original: np.ndarray
    reconstruction: np.ndarray

    def title(self, step: int) -> str:
        """Return a title of two lines.

        The first has the step and the name. The second has the SI-SDR and SNR of the reconstruction.
        """
        name = self.name if len(self.name) <= _MAX_NAME else f"...{self.name[-_MAX_NAME:]}"
        errors = WaveformErrors(self.original.shape[1])
        errors.add(self.original.astype(np.float64), self.reconstruction.astype(np.float64))
        ratios = {"SI-SDR": errors.si_sdr(), "SNR": errors.snr()}
        return f"step {step:,}: {name}\n" + ", ".join(
            f"{name} silent" if ratio is None else f"{name} {ratio:.1f} dB" for name, ratio in ratios.items()
        )


class Samples:
    """Reads a run's samples once, and reconstructs them on request.

    It uses only this process and its devices, so a single process of several may call it.

    Args:
      records: `Data.samples`.
      count: number of samples.
      model: the model that reconstructs them.
    """

    def __init__(self, records, count: int, model: AudioVAE):
        self._records, self._count, self._model = records, count, model
        self._originals: list[tuple[str, np.ndarray]] = []

    def reconstruct(self, variables: Any) -> list[Sample]:
        """Reconstruct the samples from the latent's mean.

        The model runs in chunks, with the same result as in a single pass.

        Args:
          variables: the model's variables, replicated on every device.

        Raises:
          DataError: the audio cannot be read.
        """
        if not self._originals:
            self._originals = [self._read(index) for index in range(self._count)]
        local = jax.tree.map(lambda x: np.asarray(x.addressable_data(0)), variables)
        chunked = ChunkedModel(*self._model.folded(local))
        return [Sample(name, audio, _reconstruction(chunked, audio)) for name, audio in self._originals]

    def _read(self, index):
        audio = self._records[index]
        origin = self._records.origin(index)
        return ("unknown", audio) if origin is None else (str(origin), audio[: origin.samples])


def _reconstruction(chunked, audio):
    length = len(audio)
    latents = np.concatenate([posterior.z for posterior in chunked.encode([audio[:, None]], length)])
    return np.concatenate(list(chunked.decode([latents], len(latents), length)))[:, 0]
