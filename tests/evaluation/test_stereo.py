import numpy as np
import pytest

from audiovae_jax.evaluation import spectral, stereo

RNG = np.random.default_rng(0)
LEFT, RIGHT = RNG.standard_normal((2, 20_000))


def _spectra(*signals):
    stacked = np.concatenate([np.atleast_2d(s) for s in signals]).astype(np.float32)
    frames = spectral.Frames((1024, 256, 1024))
    found = [part for part in (frames.add(stacked), frames.end()) if part is not None]
    found = np.concatenate(found, axis=1)
    return spectral.Spectra(found[: len(found) // 2], found[len(found) // 2 :])


def test_the_field_in_closed_form():
    reference = np.stack([LEFT + RIGHT, LEFT - RIGHT], axis=1)  # mid is LEFT, side is RIGHT
    estimate = np.stack([0.9 * LEFT + 0.99 * RIGHT, 0.9 * LEFT - 0.99 * RIGHT], axis=1)
    field = stereo.StereoField()
    field.add(reference[:7000], estimate[:7000])
    field.add(reference[7000:], estimate[7000:])
    found = field.result()
    assert found["mid_snr_db"] == pytest.approx(20)
    assert found["side_snr_db"] == pytest.approx(40)
    expected = [np.corrcoef(a.T)[0, 1] for a in (reference, estimate)]
    assert found["stereo_correlation"] == pytest.approx(expected[0])
    assert found["stereo_correlation_error"] == pytest.approx(abs(expected[0] - expected[1]))
    mono = stereo.StereoField()
    mono.add(reference[:, :1].repeat(2, axis=1), estimate)
    assert mono.result()["side_snr_db"] is None


def test_panning_goes_from_one_side_to_the_other():
    nothing = np.zeros_like(LEFT)

    def error(reference, estimate):
        measure = stereo.PanError()
        measure.add(_spectra(np.stack(reference), np.stack(estimate)))
        return measure.result()

    assert error((LEFT, nothing), (nothing, LEFT)) == pytest.approx(2, abs=1e-5)
    assert error((LEFT, LEFT), (LEFT, nothing)) == pytest.approx(1, abs=1e-5)
    assert error((LEFT, 0.3 * LEFT), (0.5 * LEFT, 0.15 * LEFT)) == pytest.approx(0, abs=1e-5)
    # Of amplitudes 1 and a the index is 1 - 2a / (1 + a^2).
    assert error((LEFT, LEFT), (LEFT, 0.5 * LEFT)) == pytest.approx(0.2, abs=1e-5)
    assert error((nothing, nothing), (LEFT, LEFT)) is None


def test_phase_coherence():
    def coherence(reference, estimate):
        measure = stereo.PhaseCoherence()
        measure.add(_spectra(np.stack(reference), np.stack(estimate)))
        return measure.channels(), measure.between()

    assert coherence((LEFT, RIGHT), (0.1 * LEFT, 3 * RIGHT)) == pytest.approx((1, 1), abs=1e-6)
    # A constant phase shift of one channel leaves the coherence within and between channels at 1.
    assert coherence((LEFT, RIGHT), (-LEFT, RIGHT)) == pytest.approx((1, 1), abs=1e-6)
    within, between = coherence((LEFT, RIGHT), (RIGHT, RNG.standard_normal(20_000)))
    assert within < 0.15
    assert between < 0.15
    assert coherence((LEFT,), (LEFT,)) == (pytest.approx(1), None)


def test_phase_coherence_of_near_silence_is_a_number():
    for scale in (1e-10, 1e-16, 1e-22):
        measure = stereo.PhaseCoherence()
        measure.add(_spectra(scale * np.stack([LEFT, RIGHT]), np.stack([LEFT, RIGHT])))
        assert measure.between() == pytest.approx(1, abs=1e-3)


def test_phase_coherence_written_a_second_way():
    estimate = np.stack([LEFT, RIGHT]) + 0.5 * RNG.standard_normal((2, 20_000))
    spectra = _spectra(np.stack([LEFT, RIGHT]), estimate)
    measure = stereo.PhaseCoherence()
    measure.add(spectra)
    y, x = spectra.reference.astype(np.complex128), spectra.estimate.astype(np.complex128)
    turn = np.angle(x[0]) - np.angle(x[1]) - np.angle(y[0]) + np.angle(y[1])
    weight = np.abs(x[0] * x[1])
    per_frame = np.abs((weight * np.exp(1j * turn)).sum(axis=-1)) / weight.sum(axis=-1)
    expected = np.average(per_frame, weights=weight.sum(axis=-1))
    assert measure.between() == pytest.approx(expected, rel=1e-5)
