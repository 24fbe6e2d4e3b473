"""Levels far above full scale: measured, kept by probing, and reported with the remedy."""

import numpy as np
import pytest
import soundfile

from audiovae_jax.data.audio import audio_file, levels, stream
from audiovae_jax.data.feeding import pipeline
from audiovae_jax.data.sets import catalog, folder, probing


def _noise(scale, seconds=0.5):
    """Uniform noise between -scale and scale, of which a share of 1 - 1 / scale is above full scale."""
    return np.random.default_rng(0).uniform(-scale, scale, (int(44100 * seconds), 2)).astype(np.float32)


def test_the_level_of_blocks_is_that_of_the_whole():
    meter = levels.Meter()
    assert meter.level == (0.0, 0.0)
    for block in ([[0.5, -2.0]], [[1.0, -1.0], [1.5, 0.0]], np.zeros((0, 2))):
        meter.add(np.asarray(block, np.float32))
    assert meter.level == (2.0, 2 / 6)
    assert str(levels.Level(10.0, 0.25)) == "+20.0 dBFS, with 25% of the samples above full scale"


@pytest.mark.parametrize(("scale", "is_loud"), [(1.0, False), (4.0, False), (20.0, True), (32767.0, True)])
def test_probing_keeps_a_level_far_above_full_scale(tmp_path, scale, is_loud):
    soundfile.write(tmp_path / "a.wav", _noise(scale), 44100, subtype="FLOAT")
    options = probing.Options(channels=2, index_folder=tmp_path / "index")
    first = audio_file.probe(tmp_path / "a.wav")
    assert (first.level is not None) == is_loud
    if is_loud:
        assert first.level.peak == pytest.approx(scale, rel=1e-3)
        assert first.level.over == pytest.approx(1 - 1 / scale, abs=0.02)
    for _ in range(2):  # the second is from the index
        assert probing.probe(str(tmp_path), [tmp_path / "a.wav"], options) == [first]


def test_loud_files_are_counted_and_the_loudest_is_named(tmp_path):
    for name, scale in (("a", 0.5), ("b", 20.0), ("c", 32767.0)):
        soundfile.write(tmp_path / f"{name}.wav", _noise(scale), 44100, subtype="FLOAT")
    found = folder.scan(str(tmp_path), probing.Options(channels=2), 0.1)
    (notice,) = catalog.notices(found.train + found.validation)
    assert notice.startswith(
        f"2 files far above full scale; the loudest: {tmp_path}/c.wav peaks at +90.3 dBFS, with 100"
    )
    assert notice.endswith("scale its samples to -1..1 (divide 16-bit values by 32768)")


def test_integers_stored_as_floats_train_only_if_crops_are_normalized(tmp_path, micro_config):
    for name, scale in (("a", 0.5), ("b", 20.0), ("c", 32767.0)):
        soundfile.write(tmp_path / f"{name}.wav", _noise(scale), 44100, subtype="FLOAT")
    config = micro_config.data
    config.root, config.index, config.max_bad_share = str(tmp_path), False, 0.5
    assert pipeline.open_catalog(config).skipped == ()
    config.peak_normalize = False
    ((name, reason),) = pipeline.open_catalog(config).skipped
    assert (name, reason[:24]) == (f"{tmp_path}/c.wav", "peaks at +90.3 dBFS, wit")


def test_opening_a_loud_file_warns(tmp_path):
    soundfile.write(tmp_path / "a.wav", _noise(32767.0), 44100, subtype="FLOAT")
    with pytest.warns(UserWarning, match=r"a.wav peaks at \+90.3 dBFS.*divide 16-bit values by 32768"):
        stream.open_file(tmp_path / "a.wav")
