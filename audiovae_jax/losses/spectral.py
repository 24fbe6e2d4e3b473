"""Spectral distances on audio: multi-resolution STFT and log-spectral distance.

The multi-resolution STFT loss is from Yamamoto et al., "Parallel WaveGAN", 2020. Its sum-and-difference form is from
Steinmetz et al., "Automatic multitrack mixing with a differentiable mixing console", 2021.
"""

import jax.numpy as jnp

from audiovae_jax.errors import require_range
from audiovae_jax.ops import signal

_EPS = 1e-8
_WEIGHTINGS = {False: None, True: signal.a_weight, "a": signal.a_weight, "k": signal.k_weight}
# Parallel WaveGAN's FFT, hop and window lengths in samples, used if `fft_sizes` is None.
_FFT_SIZES, _HOP_SIZES, _WIN_LENGTHS = (1024, 2048, 512), (120, 240, 50), (600, 1200, 240)


def multi_resolution_stft(
    *,
    prediction,
    target,
    fft_sizes=None,
    hop_sizes=None,
    win_lengths=None,
    w_sc=1.0,
    w_log_mag=1.0,
    w_lin_mag=0.0,
    w_log1p_mag=0.0,
    perceptual_weighting: bool | str = False,
    sample_rate=44100,
):
    """Average spectral convergence and magnitude distances over resolutions.

    Args:
      prediction, target: `[B, T, C]` audio; each channel is a separate item.
      fft_sizes: FFT lengths in samples. None for Parallel WaveGAN's 1024, 2048 and 512, with hops of 120, 240 and 50
        and windows of 600, 1200 and 240.
      hop_sizes: hop lengths in samples, one per FFT; None for a quarter of each given FFT.
      win_lengths: Hann window lengths in samples, one per FFT; None for each given FFT length.
      w_sc: weight of `||Y - X||_F / ||Y||_F`, per item.
      w_log_mag: weight of the mean `|log X - log Y|`.
      w_lin_mag: weight of the mean `|X - Y|`.
      w_log1p_mag: weight of the mean `|log(1 + X) - log(1 + Y)|`, in which quiet bins count little.
      perceptual_weighting: the filter of both signals: True or "a" for the A weighting (IEC 61672-1), "k" for the K
        weighting (ITU-R BS.1770), False for none.
      sample_rate: in Hz, used only by the perceptual weighting.

    Returns:
      A float32 scalar.

    Raises:
      ValueError: shapes differ, lists differ in length, or the audio is shorter than an FFT allows.
    """
    prediction, target = items(prediction, target)
    require_weights(w_sc=w_sc, w_log_mag=w_log_mag, w_lin_mag=w_lin_mag, w_log1p_mag=w_log1p_mag)
    require_range("sample_rate", sample_rate, above=0)
    if perceptual_weighting not in _WEIGHTINGS:
        raise ValueError(f'perceptual_weighting={perceptual_weighting!r} is none of True, "a", "k" and False')
    if (weight := _WEIGHTINGS[perceptual_weighting]) is not None:
        prediction = weight(prediction, sample_rate)
        target = weight(target, sample_rate)
    if fft_sizes is None:
        fft_sizes = _FFT_SIZES
        hop_sizes = _HOP_SIZES if hop_sizes is None else hop_sizes
        win_lengths = _WIN_LENGTHS if win_lengths is None else win_lengths
    resolutions = stft_resolutions(fft_sizes, hop_sizes, win_lengths)
    total = 0.0
    for n_fft, hop_length, win_length in resolutions:
        x = signal.magnitude(signal.stft(prediction, n_fft, hop_length, win_length))
        y = signal.magnitude(signal.stft(target, n_fft, hop_length, win_length))
        if w_sc:
            total += w_sc * spectral_convergence(x, y)
        if w_log_mag:
            total += w_log_mag * jnp.mean(jnp.abs(jnp.log(x + _EPS) - jnp.log(y + _EPS)))
        if w_lin_mag:
            total += w_lin_mag * jnp.mean(jnp.abs(x - y))
        if w_log1p_mag:
            total += w_log1p_mag * jnp.mean(jnp.abs(jnp.log1p(x) - jnp.log1p(y)))
    return jnp.asarray(total / len(resolutions), jnp.float32)


def sum_and_difference_stft(*, prediction, target, w_sum=1.0, w_diff=1.0, **options):
    """Combine `multi_resolution_stft` of L+R and L-R as `(w_sum*s + w_diff*d) / 2`.

    L+R and L-R are not halved.

    Args:
      prediction, target: `[B, T, 2]` audio.
      w_sum, w_diff: weights of the two parts.
      **options: options of `multi_resolution_stft`.

    Raises:
      ValueError: the audio is not stereo, or `multi_resolution_stft` raises it.
    """
    require_stereo("sum_and_difference_stft", prediction, target)
    require_weights(w_sum=w_sum, w_diff=w_diff)
    total, difference = (
        multi_resolution_stft(prediction=_fold(prediction, sign), target=_fold(target, sign), **options)
        for sign in (1, -1)
    )
    return (w_sum * total + w_diff * difference) / 2


sum_and_difference_stft.forwards_to = multi_resolution_stft  # config options are checked against both signatures


def mid_side_stft(*, prediction, target, **options):
    """Compute `multi_resolution_stft` of mid `(L+R)/2` and side `(L-R)/2`.

    Args:
      prediction, target: `[B, T, 2]` audio.
      **options: options of `multi_resolution_stft`.

    Raises:
      ValueError: the audio is not stereo, or `multi_resolution_stft` raises it.
    """
    require_stereo("mid_side_stft", prediction, target)
    return multi_resolution_stft(prediction=mid_side(prediction), target=mid_side(target), **options)


mid_side_stft.forwards_to = multi_resolution_stft


def mid_side(audio):
    """Convert left and right to mid `(L+R)/2` and side `(L-R)/2`, both `[B, T, 2]`."""
    return jnp.concatenate([_fold(audio, 1), _fold(audio, -1)], axis=-1) / 2


def log_spectral_distance(*, prediction, target, n_fft=1024, hop_length=256):
    """Return the RMS distance of log power spectra in dB, averaged over items.

    Defined by Gray and Markel, 1976.

    Args:
      prediction, target: `[B, T, C]` audio; each channel is a separate item.
      n_fft, hop_length: in samples.

    Returns:
      A float32 scalar in dB.
    """
    prediction, target = items(prediction, target)
    x, y = (20 * jnp.log10(signal.magnitude(signal.stft(a, n_fft, hop_length)) + _EPS) for a in (prediction, target))
    # The floor under the root keeps the gradient finite where prediction equals target.
    return jnp.mean(jnp.sqrt(jnp.maximum(jnp.mean(jnp.square(x - y), axis=(1, 2)), 1e-20)))


def spectral_convergence(prediction, target, *, convergence="item"):
    """Return `||target - prediction||_F / ||target||_F` of magnitudes.

    Magnitudes are `[N, frames, bins]`.

    `convergence="item"` computes one ratio per item and averages the ratios, so the result is independent of how a
    batch is split over devices. `convergence="batch"` computes one ratio over the whole batch.
    """
    if convergence not in ("item", "batch"):
        raise ValueError(f'convergence={convergence!r} is neither "item" nor "batch"')
    axes = (-2, -1) if convergence == "item" else None
    # The floor under the root keeps the gradient finite where prediction equals target.
    norm = jnp.sqrt(jnp.maximum(jnp.sum(jnp.square(target - prediction), axis=axes), 1e-20))
    reference = jnp.sqrt(jnp.sum(jnp.square(target), axis=axes))
    return jnp.mean(norm / (reference + (1e-5 if convergence == "item" else 0.0)))


def stft_resolutions(fft_sizes, hop_sizes, win_lengths):
    """Return `[(n_fft, hop_length, win_length)]` for three lists of one length.

    Hops default to `n_fft // 4` and windows to `n_fft`.

    Raises:
      ValueError: the lists differ in length, are empty, or a length is too small.
    """
    hop_sizes = [n // 4 for n in fft_sizes] if hop_sizes is None else hop_sizes
    win_lengths = fft_sizes if win_lengths is None else win_lengths
    if not len(fft_sizes) == len(hop_sizes) == len(win_lengths) > 0:
        raise ValueError(
            "fft_sizes, hop_sizes and win_lengths must be lists of one length, at least 1, not "
            f"{len(fft_sizes)}, {len(hop_sizes)} and {len(win_lengths)}"
        )
    for n_fft, hop_length, win_length in zip(fft_sizes, hop_sizes, win_lengths, strict=True):
        if n_fft < 2 or hop_length < 1 or win_length < 1:
            raise ValueError(
                f"an FFT of {n_fft} samples with hop {hop_length} and window {win_length}: the FFT must be at least "
                "2 samples, hop and window at least 1"
            )
    return list(zip(fft_sizes, hop_sizes, win_lengths, strict=True))


def require_weights(**weights):
    """Raise ValueError unless all weights are finite and at least 0.

    A negative weight would invert the loss.
    """
    for name, weight in weights.items():
        require_range(name, weight)


def items(prediction, target):
    """Reshape both arrays from `[B, T, C]` to float32 `[B * C, T]`."""
    require_same_shape(prediction, target)
    b, t, c = prediction.shape
    return tuple(jnp.moveaxis(a, -1, 1).reshape(b * c, t).astype(jnp.float32) for a in (prediction, target))


def _fold(audio, sign):
    return audio[..., :1] + sign * audio[..., 1:]


def require_stereo(name, prediction, target):
    """Raise ValueError unless both arrays are `[B, T, 2]`."""
    require_same_shape(prediction, target)
    if prediction.shape[-1] != 2:
        raise ValueError(
            f"{name} needs stereo audio [B, T, 2], not {tuple(prediction.shape)}; "
            "for mono use multi_resolution_stft, as configs/mono.py does"
        )


def require_same_shape(prediction, target):
    """Raise ValueError unless both arrays are `[B, T, C]` and have the same shape."""
    if prediction.ndim != 3 or prediction.shape != target.shape:
        raise ValueError(
            "prediction and target must both be [B, T, C] audio of one shape, not "
            f"{tuple(prediction.shape)} and {tuple(target.shape)}"
        )
