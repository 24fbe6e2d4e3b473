import concurrent.futures

import librosa
import numpy as np
import pytest

from audiovae_jax.evaluation import metrics, spectral
from audiovae_jax.ops import signal

RATE = 44100
RNG = np.random.default_rng(0)
REFERENCE = (0.2 * RNG.standard_normal((30_011, 2))).astype(np.float32)
ESTIMATE = (0.9 * REFERENCE + 0.02 * RNG.standard_normal(REFERENCE.shape)).astype(np.float32)
BY_NAME = {distance.name: distance for distance in (*metrics.DISTANCES, *metrics.EAR_DISTANCES)}


def _distances(reference=REFERENCE, estimate=ESTIMATE, names=tuple(BY_NAME), size=7001):
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        analysis = spectral.Analysis([BY_NAME[name] for name in names], [], RATE, pool)
        for start in range(0, len(reference), size):
            analysis.add(reference[start : start + size], estimate[start : start + size])
        return analysis.end()


def _magnitudes(audio, resolution, n_mels=None):
    """`[channels, bins, frames]`, by librosa."""
    n_fft, hop, win_length = resolution
    options = {"n_fft": n_fft, "hop_length": hop, "win_length": win_length, "pad_mode": "reflect"}
    magnitudes = np.abs(librosa.stft(audio.T.astype(np.float64), **options))
    return magnitudes if n_mels is None else librosa.filters.mel(sr=RATE, n_fft=n_fft, n_mels=n_mels) @ magnitudes


def test_blocks_of_any_size_give_the_same_frames():
    frames = spectral.Frames((1024, 120, 600))
    parts, start = [], 0
    for size in (1, 300, 511, 2, 5000, 13, 20_000):
        parts.append(frames.add(REFERENCE[start : start + size].T))
        start += size
    parts += [frames.add(REFERENCE[start:].T), frames.end()]
    joined = np.concatenate([part for part in parts if part is not None], axis=1)
    whole = np.asarray(signal.stft(REFERENCE.T, 1024, 120, 600))
    assert joined.shape == whole.shape
    np.testing.assert_allclose(joined, whole, atol=2e-5)


@pytest.mark.slow
def test_definitions_written_a_second_way():
    found = _distances()
    both = {}
    for name in ("auraloss_stft", "audiotools_mel", "log1p_stft", "log_spectral_db"):
        distance = BY_NAME[name]
        mels = distance.n_mels or [None] * len(distance.resolutions)
        both[name] = [
            [_magnitudes(a, r, m) for a in (REFERENCE, ESTIMATE)]
            for r, m in zip(distance.resolutions, mels, strict=True)
        ]
    floored = [[np.sqrt(np.maximum(a**2, 1e-8)) for a in pair] for pair in both["auraloss_stft"]]
    expected = [np.linalg.norm(y - x) / np.linalg.norm(y) + np.mean(np.abs(np.log(y) - np.log(x))) for y, x in floored]
    assert found["auraloss_stft"] == pytest.approx(np.mean(expected), rel=1e-4)
    expected = [
        np.mean(np.abs(np.log10(np.maximum(y, 1e-5) ** 2) - np.log10(np.maximum(x, 1e-5) ** 2)))
        + np.mean(np.abs(y - x))
        for y, x in both["audiotools_mel"]
    ]
    assert found["audiotools_mel"] == pytest.approx(np.sum(expected), rel=1e-5)
    expected = [np.mean(np.abs(np.log1p(y) - np.log1p(x))) for y, x in both["log1p_stft"]]
    assert found["log1p_stft"] == pytest.approx(np.mean(expected), rel=1e-5)
    ((y, x),) = [[20 * np.log10(np.maximum(a, 1e-4)) for a in pair] for pair in both["log_spectral_db"]]
    expected = np.mean(np.sqrt(np.mean((y - x) ** 2, axis=1)))
    assert found["log_spectral_db"] == pytest.approx(expected, rel=1e-4)


def test_equal_signals_have_no_distance_and_a_gain_has_its_own():
    assert all(value == 0 for value in _distances(estimate=REFERENCE).values())
    found = _distances(estimate=(REFERENCE * 0.5).astype(np.float32))
    assert found["auraloss_mel"] == pytest.approx(0.5 + np.log(2), rel=1e-3)
    assert found["log_spectral_db"] == pytest.approx(20 * np.log10(2), rel=1e-3)


def test_short_audio_and_empty_bands_have_no_value():
    found = _distances(REFERENCE[:600], ESTIMATE[:600])
    assert found["audiotools_stft"] is None
    distance = spectral.Distance("narrow", spectral.AURALOSS, ((256, 64, 256),), n_mels=(128,))
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        analysis = spectral.Analysis([distance], [], RATE, pool)
        analysis.add(REFERENCE, ESTIMATE)
        assert analysis.end()["narrow"] is None


def _torch_pair():
    torch = pytest.importorskip("torch")
    return [torch.tensor(a.T[None].copy()) for a in (ESTIMATE, REFERENCE)]


def test_as_auraloss_has_them():
    freq = pytest.importorskip("auraloss").freq
    x, y = _torch_pair()
    sizes, hops = [4096, 2048, 1024, 512, 256, 128], [1024, 512, 256, 128, 64, 32]
    options = {"sample_rate": RATE, "perceptual_weighting": True}
    expected = {
        "auraloss_stft": freq.MultiResolutionSTFTLoss(),
        "auraloss_mel": freq.MelSTFTLoss(RATE),
        "ear_stft": freq.MultiResolutionSTFTLoss(sizes, hops, sizes, **options),
        "ear_mel": freq.MultiResolutionSTFTLoss(sizes[:4], hops[:4], sizes[:4], scale="mel", n_bins=64, **options),
    }
    found = _distances(names=tuple(expected))
    for name, loss in expected.items():
        assert found[name] == pytest.approx(float(loss(x, y)), rel=1e-4), name


def test_as_audiotools_has_them():
    audiotools = pytest.importorskip("audiotools")
    x, y = (audiotools.AudioSignal(a, RATE) for a in _torch_pair())
    found = _distances(names=("audiotools_stft", "audiotools_mel"))
    expected = float(audiotools.metrics.spectral.MultiScaleSTFTLoss()(x, y))
    assert found["audiotools_stft"] == pytest.approx(expected, rel=1e-4)
    expected = float(audiotools.metrics.spectral.MelSpectrogramLoss()(x, y))
    assert found["audiotools_mel"] == pytest.approx(expected, rel=1e-4)
