"""Built-in synthetic stereo music, so that everything runs without audio files.

It has chords, a bass, a melody and percussion over a steady beat. Each note is an alias-free wavetable. It is placed in
the stereo field by level and by a delay below 1 ms.
"""

import numpy as np

_TABLE = 4096
_SCALES = ((0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10), (0, 2, 3, 5, 7, 9, 10))
_PROGRESSIONS = ((0, 4, 5, 3), (0, 5, 3, 4), (0, 3, 4, 0), (5, 3, 0, 4), (0, 1, 4, 0))
_MAX_DELAY = 0.0006  # seconds between the ears


def music(rng: np.random.Generator, length: int, sample_rate: int, channels: int) -> np.ndarray:
    """Generate music `[length, channels]`, float32, with a peak of at most 1."""
    beat = 60 / rng.uniform(70, 150)
    duration = length / sample_rate
    # Start before the excerpt, so that the notes of the previous bar ring on into it.
    onset = -rng.uniform(1, 2) * 4 * beat
    root = rng.integers(36, 48)
    scale = _SCALES[rng.integers(len(_SCALES))]
    progression = _PROGRESSIONS[rng.integers(len(_PROGRESSIONS))]
    instruments = [_instrument(rng) for _ in range(3)]
    audio = np.zeros((length, 2), np.float32)

    def play(start, seconds, degree, octave, instrument, level):
        pitch = root + 12 * (octave + degree // 7) + scale[degree % 7]
        _add_note(audio, start, seconds, 440 * 2 ** ((pitch - 69) / 12), instrument, level, sample_rate)

    bar = 0
    while onset + bar * 4 * beat < duration:
        start = onset + bar * 4 * beat
        degree = progression[bar % 4]
        for third in (0, 2, 4):
            play(start, 4 * beat, degree + third, 1, instruments[0], 0.16)
        for i in range(4):
            if rng.random() < 0.7:
                play(start + i * beat, beat, degree, 0, instruments[1], 0.35)
            kind = "kick" if i % 2 == 0 else "snare"
            _add_percussion(audio, rng, start + i * beat, kind, sample_rate)
            _add_percussion(audio, rng, start + (i + 0.5) * beat, "hat", sample_rate)
        for i in range(8):
            if rng.random() < 0.6:
                play(start + i * beat / 2, beat * rng.choice([0.5, 1, 1.5]), degree + rng.integers(0, 7), 2,
                     instruments[2], 0.25)  # fmt: skip
        bar += 1
    audio *= rng.uniform(0.3, 1.0) / max(float(np.abs(audio).max()), 1e-3)
    if channels == 1:
        return audio.mean(axis=1, keepdims=True)
    return np.concatenate([audio] * -(-channels // 2), axis=1)[:, :channels]


def _instrument(rng):
    """Draw an instrument's harmonics, envelope, pan and vibrato."""
    harmonics = np.arange(1, 40)
    amplitudes = harmonics ** -rng.uniform(0.9, 2.2)
    if rng.random() < 0.4:
        amplitudes[1::2] *= 0.1  # hollow, like a clarinet
    return {
        "amplitudes": amplitudes,
        "phases": rng.uniform(0, 2 * np.pi, len(harmonics)),
        "attack": rng.choice([0.002, 0.01, 0.08]),
        "decay": rng.uniform(0.15, 2.0),
        "pan": rng.uniform(-0.8, 0.8),
        "vibrato": rng.choice([0.0, 0.003]),
    }


def _add_note(audio, start, seconds, frequency, instrument, level, sample_rate):
    release = 0.05
    first = max(0, int(start * sample_rate))
    last = min(len(audio), int((start + seconds + release) * sample_rate))
    if last <= first:
        return
    t = np.arange(first, last, dtype=np.float32) / sample_rate - np.float32(start)
    audible = min(len(instrument["amplitudes"]), int(0.45 * sample_rate / frequency))
    spectrum = np.zeros(_TABLE // 2 + 1, complex)
    spectrum[1 : audible + 1] = (instrument["amplitudes"] * np.exp(1j * instrument["phases"]))[:audible]
    table = np.fft.irfft(spectrum).astype(np.float32) * _TABLE / 2
    phase = frequency * (t + instrument["vibrato"] / 30 * np.sin(2 * np.pi * 5 * t))
    envelope = np.minimum(t / instrument["attack"], 1) * np.exp(-t / instrument["decay"])
    envelope *= np.clip((seconds + release - t) / release, 0, 1)
    envelope *= level
    for side, gain, delay in _place(instrument["pan"]):
        index = ((phase - delay * frequency) * _TABLE).astype(np.int64) & (_TABLE - 1)
        audio[first:last, side] += gain * envelope * table[index]


def _add_percussion(audio, rng, start, kind, sample_rate):
    seconds, level, pan = {"kick": (0.25, 0.7, 0.0), "snare": (0.2, 0.4, 0.1), "hat": (0.06, 0.15, 0.4)}[kind]
    level *= rng.uniform(0.6, 1.0)
    noise = rng.standard_normal(int(seconds * sample_rate)).astype(np.float32)  # drawn even if unused
    first, last = int(start * sample_rate), int(start * sample_rate) + len(noise)
    low, high = max(0, first), min(len(audio), last)
    if high <= low:
        return
    t = np.arange(len(noise), dtype=np.float32) / sample_rate
    if kind == "kick":
        sound = np.sin(2 * np.pi * (50 * t + 6 * (1 - np.exp(-t / 0.02)))) * np.exp(-t / 0.08)
    elif kind == "snare":
        sound = (0.6 * noise + np.sin(2 * np.pi * 190 * t)) * np.exp(-t / 0.05)
    else:
        sound = np.diff(noise, prepend=np.float32(0)) * np.exp(-t / 0.015)
    for side, gain, _ in _place(pan):
        audio[low:high, side] += gain * level * sound[low - first : high - first]


def _place(pan):
    """Return `(channel, gain, delay in seconds)` of both channels.

    `pan` is from -1 (left) to 1 (right).
    """
    angle = (pan + 1) * np.pi / 4
    return (
        (0, np.float32(np.cos(angle)), max(0.0, pan) * _MAX_DELAY),
        (1, np.float32(np.sin(angle)), max(0.0, -pan) * _MAX_DELAY),
    )
