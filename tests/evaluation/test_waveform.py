import numpy as np
import pytest

from audiovae_jax.evaluation.waveform import BssSdr, WaveformErrors

RNG = np.random.default_rng(0)
REFERENCE = 0.3 * RNG.standard_normal((20_000, 2)) + 0.01


def _fed(measure, reference, estimate, size=3001):
    for start in range(0, len(reference), size):
        measure.add(reference[start : start + size], estimate[start : start + size])
    return measure


def test_closed_forms():
    gained = _fed(WaveformErrors(2), REFERENCE, 0.9 * REFERENCE)
    assert gained.snr() == pytest.approx(20.0)  # the error is a tenth
    assert gained.si_sdr() > 250  # a gain is not an error; only rounding remains
    assert gained.l1() == pytest.approx(0.1 * np.abs(REFERENCE).mean())
    assert gained.mse() == pytest.approx(0.01 * np.square(REFERENCE).mean())
    time = 2 * np.pi * np.arange(44100) / 44100
    sine, cosine = np.sin(100 * time)[:, None], np.cos(100 * time)[:, None]
    orthogonal = _fed(WaveformErrors(1), sine, sine + 0.1 * cosine)
    assert orthogonal.si_sdr() == pytest.approx(20.0)
    assert _fed(WaveformErrors(2), REFERENCE, REFERENCE + 3.0).si_sdr() > 250  # an offset is not an error either


def test_silence_and_exactness():
    silent = np.zeros((100, 2))
    assert _fed(WaveformErrors(2), silent, REFERENCE[:100]).si_sdr() is None
    assert _fed(WaveformErrors(2), silent, REFERENCE[:100]).snr() is None
    assert _fed(BssSdr(2), silent, REFERENCE[:100]).sdr() is None
    assert _fed(WaveformErrors(2), REFERENCE, REFERENCE).snr() == np.inf
    # A silent channel has no ratio, and does not affect the other's.
    half = REFERENCE * [1, 0]
    assert _fed(WaveformErrors(2), half, 0.9 * half).snr() == pytest.approx(20.0)


def test_only_bss_eval_allows_a_filter():
    taps = RNG.standard_normal(300) * np.exp(-np.arange(300) / 40)
    filtered = np.stack([np.convolve(channel, taps)[: len(REFERENCE)] for channel in REFERENCE.T], axis=1)
    assert _fed(BssSdr(2), REFERENCE, filtered).sdr() > 25  # the filter's end is cut off
    assert _fed(WaveformErrors(2), REFERENCE, filtered).si_sdr() < 10


def test_bss_eval_is_a_projection_on_shifted_references():
    reference, estimate = RNG.standard_normal((2, 1000))
    estimate = estimate + np.convolve(reference, [0.5, 0.2, 0.1])[:1000]
    shifted = np.stack([np.pad(reference, (k, 512 - k))[: 1000 + 511] for k in range(512)], axis=1)
    padded = np.pad(estimate, (0, 511))
    projection = shifted @ np.linalg.lstsq(shifted, padded, rcond=None)[0]
    expected = 10 * np.log10(np.square(projection).sum() / np.square(padded - projection).sum())
    measured = _fed(BssSdr(1), reference[:, None], estimate[:, None], size=300).sdr()
    assert measured == pytest.approx(expected, abs=1e-3)


def test_as_torchmetrics_has_them():
    audio = pytest.importorskip("torchmetrics.functional.audio")
    torch = pytest.importorskip("torch")
    estimate = 0.8 * REFERENCE + 0.05 * RNG.standard_normal(REFERENCE.shape)
    y, x = (torch.tensor(a.T.copy()) for a in (REFERENCE, estimate))
    errors = _fed(WaveformErrors(2), REFERENCE, estimate)
    assert errors.snr() == pytest.approx(float(audio.signal_noise_ratio(x, y).mean()), abs=1e-5)
    expected = audio.scale_invariant_signal_distortion_ratio(x, y, zero_mean=True)
    assert errors.si_sdr() == pytest.approx(float(expected.mean()), abs=1e-5)
    expected = audio.signal_distortion_ratio(x, y)
    assert _fed(BssSdr(2), REFERENCE, estimate).sdr() == pytest.approx(float(expected.mean()), abs=1e-4)
