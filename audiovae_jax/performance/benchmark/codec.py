"""Codec benchmark: encoding and decoding, in multiples of real time."""

import contextlib
import functools
import sys
import time
from typing import Any

import jax
import ml_collections
import numpy as np

from audiovae_jax.config import build
from audiovae_jax.inference.chunked import ChunkedModel
from audiovae_jax.models.audio_vae import AudioVAE
from audiovae_jax.performance.benchmark import measure
from audiovae_jax.performance.benchmark.peer import Peer

_DIRECTIONS = ("encode", "decode")


def follow(config: ml_collections.ConfigDict, model: AudioVAE, sample_rate: int | None):
    """Set the keys of `config` that describe a model to the values of `model`.

    Peers build their model from these keys.
    """
    for key in config.model:
        value = getattr(model, key)
        config.model[key] = str(np.dtype(value)) if key == "dtype" else value
    config.data.channels = model.in_channels
    if sample_rate is not None:
        config.data.sample_rate = sample_rate
    hop = model.hop_length  # no crop is cut here, but a config's must fit its model
    config.data.crop_length = max(1, config.data.crop_length // hop) * hop


def run(
    config: ml_collections.ConfigDict,
    *,
    against: list[str],
    repeats: int,
    warmup: int,
    seconds: float,
    signals: int = 1,
    variables: dict[str, Any] | None = None,
) -> dict:
    """Time encoding and decoding with the model of `config`.

    The model runs as in `Codec`: weight norm folded, in chunks. Progress goes to stderr.

    Args:
      config: of the model and the audio.
      against: names of peers to compare with.
      repeats: measured rounds.
      warmup: rounds before them.
      seconds: length of each signal, cut to whole latent frames.
      signals: number of signals in a batch.
      variables: of the model; by default drawn from the config's seed.

    Returns:
      A report with a dict each for `encode` and `decode`. It contains the time and `real_time_factor` (seconds of audio
      per second) of `ours` and of each peer, and `ratios` of our time to theirs.
    """
    model = build.build_model(config)
    sample_rate, lanes = config.data.sample_rate, signals
    say = functools.partial(print, file=sys.stderr, flush=True)
    length = max(1, int(seconds * sample_rate) // model.hop_length) * model.hop_length
    if variables is None:
        say("drawing parameters ...")
        variables = jax.jit(lambda key, audio: model.init(key, audio, deterministic=True))(
            jax.random.key(config.seed), np.zeros((1, model.min_length, model.in_channels), np.float32)
        )
    chunked = ChunkedModel(*model.folded(variables))
    audio = 0.3 * np.random.default_rng(config.seed).standard_normal((length, lanes, model.in_channels))
    audio = audio.astype(np.float32)

    def encode():
        return np.concatenate([posterior.z for posterior in chunked.encode([audio], length)])

    say("compiling the encoder ...")
    latents = encode()

    def decode():
        return np.concatenate(list(chunked.decode([latents], len(latents), length)))

    say("compiling the decoder ...")
    decode()
    report = {"benchmark": "codec", "machine": measure.machine()}
    report["what"] = (
        f"{lanes} x {length / sample_rate:.2f} s of {sample_rate} Hz audio, base_channels {model.base_channels}, "
        f"{config.model.dtype}"
    )
    played = lanes * length / sample_rate
    with contextlib.ExitStack() as stack:
        peers = {
            name: stack.enter_context(Peer(name, "codec", config, length=length, batch_size=lanes)) for name in against
        }
        for name, peer in peers.items():
            report[name] = peer.description
        for direction, once in zip(_DIRECTIONS, (encode, decode), strict=True):
            work = {"ours": _seconds_of(once)}
            for name, peer in peers.items():
                work[name] = lambda peer=peer, direction=direction: peer.run(direction)["seconds"]
            timings = measure.side_by_side(
                work, repeats=repeats, warmup=warmup, say=lambda text, direction=direction: say(f"{direction}: {text}")
            )
            entry = {
                name: timing.summary() | {"real_time_factor": played / timing.median}
                for name, timing in timings.items()
            }
            entry["ratios"] = {name: timings["ours"].over(timings[name]) for name in against}
            report[direction] = entry
    return report


def _seconds_of(fn):
    def once():
        start = time.perf_counter()
        fn()
        return time.perf_counter() - start

    return once
