import dataclasses
import functools
import itertools
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiovae_jax.data.audio import audio_file, synthesis
from audiovae_jax.data.feeding.augment import Augment
from audiovae_jax.data.feeding.crops import CropFormat, FixedCrops, RandomCrops, SyntheticCrops
from audiovae_jax.data.feeding.health import Health
from audiovae_jax.data.feeding.origin import Origin, Origins
from audiovae_jax.data.sets import folder, probing
from audiovae_jax.data.sets.catalog import Excerpt, Track
from audiovae_jax.errors import DataError

CROP = CropFormat(length=2048, sample_rate=44100, channels=2)


def _scan(root, **changes):
    options = probing.Options(min_seconds=0.01, channels=2, num_threads=2, **changes)
    return folder.scan(str(root), options, validation_fraction=0.1)


def _random(files, seed=0, crop=CROP, **changes):
    return RandomCrops(format=crop, tracks=files, seed=seed, **{"health": Health(len(files)), **changes})


def _fixed(files, count, crop=CROP, **changes):
    return FixedCrops(format=crop, tracks=files, count=count, health=Health(len(files)), **changes)


def test_scan_finds_files_at_any_depth_and_splits_by_file(audio_folder):
    found = _scan(audio_folder)
    assert len(found.train) == 2
    assert len(found.validation) == 1
    assert not set(found.train) & set(found.validation)
    assert _scan(audio_folder).validation == found.validation


def test_the_fingerprint_changes_with_the_files(audio_folder):
    before = _scan(audio_folder).fingerprint
    soundfile.write(audio_folder / "new.wav", np.ones((5000, 2)) * 0.1, 44100)
    assert _scan(audio_folder).fingerprint != before


def test_one_file_serves_both_sides(tmp_path):
    soundfile.write(tmp_path / "only.wav", np.random.default_rng(0).uniform(-1, 1, (44100, 2)), 44100)
    found = _scan(tmp_path)
    assert found.train == found.validation


def test_bad_files_are_skipped_with_a_reason_and_nothing_usable_is_an_error(audio_folder, tmp_path):
    (audio_folder / "notes.wav").write_text("not audio")
    found = _scan(audio_folder)
    assert [(Path(name).name, "not audio" in reason) for name, reason in found.skipped] == [("notes.wav", True)]
    only_bad = tmp_path / "bad"
    only_bad.mkdir()
    with pytest.raises(DataError, match="contains no audio file; looked for .wav .flac"):
        _scan(only_bad)
    (only_bad / "notes.wav").write_text("not audio")
    with pytest.raises(DataError, match=r"contains no usable audio file:\n.*notes.wav: not audio"):
        _scan(only_bad)
    with pytest.raises(DataError, match="there is no such folder"):
        _scan(tmp_path / "missing")


def test_crops_depend_only_on_seed_and_index(audio_folder):
    files = _scan(audio_folder).train
    a, b = _random(files, 1), _random(files, 1)
    b[3]
    np.testing.assert_array_equal(a[7], b[7])
    assert (a[7] != a[8]).any()
    assert (a[7] != _random(files, 2)[7]).any()


def test_crops_are_peak_normalised_unless_all_but_silent(tmp_path):
    rng = np.random.default_rng(0)
    soundfile.write(tmp_path / "quiet.wav", 0.01 * rng.uniform(-1, 1, (44100, 2)), 44100, subtype="FLOAT")
    files = _scan(tmp_path).train
    assert np.abs(_random(files, 0)[0]).max() == pytest.approx(1.0)
    soundfile.write(tmp_path / "quiet.wav", 1e-4 * rng.uniform(-1, 1, (44100, 2)), 44100, subtype="FLOAT")
    assert np.abs(_random(files, 0)[0]).max() < 2e-4


def test_longer_files_are_drawn_more_often(tmp_path):
    soundfile.write(tmp_path / "long.wav", np.full((9 * 4410, 2), 0.5), 44100)
    soundfile.write(tmp_path / "short.wav", np.full((4410, 2), -0.5), 44100)
    files = [Track(p.name, audio_file.probe(p)) for p in sorted(tmp_path.iterdir())]
    crops = _random(files, 0)
    share = np.mean([crops[i][0, 0] > 0 for i in range(300)])
    assert 0.83 < share < 0.96


def test_a_file_that_turns_bad_is_replaced_deterministically_and_reported_once(audio_folder):
    files = _scan(audio_folder).train
    files[0].audio.path.write_bytes(b"gone bad")
    warned = []
    first = [_random(files, health=Health(len(files), warn=str))[i] for i in range(8)]
    crops = _random(files, health=Health(len(files), warn=warned.append))
    for i, crop in enumerate(first):
        np.testing.assert_array_equal(crops[i], crop)
    assert [str(files[0].audio.path) in text for text in warned] == [True]
    files[1].audio.path.write_bytes(b"gone bad too")
    with pytest.raises(DataError, match=r"2 files in a row could not be read; the last: .*(not audio|damaged)"):
        crops[0]


def test_validation_crops_are_fixed_and_cover_the_files(audio_folder):
    files = _scan(audio_folder).train
    crops = _fixed(files, 4)
    np.testing.assert_array_equal(crops[0], _fixed(files, 4)[0])
    assert (crops[0] != crops[1]).any()


@dataclasses.dataclass(frozen=True)
class _Ramp:
    """Audio whose samples encode the file and the position."""

    number: int
    frames: int
    sample_rate: int = 1000
    channels: int = 1
    speakers: tuple[str, ...] | None = None

    @property
    def name(self):
        return f"song {self.number}"

    def read(self, start, count):
        return np.arange(start, start + count, dtype=np.float32)[:, None] + 1e5 * self.number


def _stretches(seconds, count, length=5000, parts=1):
    """Return `[(file, first sample)]` of samples of files of these lengths."""
    ramps = [_Ramp(i, 1000 * s) for i, s in enumerate(seconds)]
    tracks = [Track(f"{ramp.name}@{i}", Excerpt(ramp, 0, ramp.frames - i)) for ramp in ramps for i in range(parts)]
    crop = CropFormat(length, 1000, 1, peak_normalize=False)
    crops = _fixed(tracks, count, crop, spread=True)
    return [divmod(int(crops[i][0, 0]), 100_000) for i in range(count)]


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("seconds", [[90, 6, 6], [6, 90, 6], [6, 6, 90], [6, 6, 90, 6, 6, 6]])
def test_samples_are_of_different_files_while_there_are_any(seconds, parts):
    files = [number for number, _ in _stretches(seconds, 4, parts=parts)]
    assert len(set(files)) == min(4, len(seconds))


@pytest.mark.parametrize("seconds", [20, 21, 30, 90])
def test_samples_of_one_file_do_not_overlap_where_it_is_long_enough(seconds):
    starts = sorted(start for _, start in _stretches([seconds], 4))
    assert all(later - earlier >= 5000 for earlier, later in itertools.pairwise(starts))
    assert starts[-1] <= 1000 * seconds - 5000


def test_samples_of_a_short_file_are_as_far_apart_as_possible():
    assert [start for _, start in _stretches([11], 4)] == [0, 2000, 4000, 6000]


def test_the_built_in_music_is_stereo_bounded_and_endless():
    crops = SyntheticCrops(format=CROP)
    items = [crops[i] for i in range(20)]
    assert len({item.tobytes() for item in items}) == 20
    for item in items:
        assert item.shape == (2048, 2)
        assert item.dtype == np.float32
        assert np.abs(item).max() <= 1.0
    assert np.mean([np.abs(x[:, 0] - x[:, 1]).max() > 0.01 for x in items]) > 0.9
    validation = SyntheticCrops(format=CROP, validation=True)
    assert (validation[0] != items[0]).any()
    np.testing.assert_array_equal(validation[0], SyntheticCrops(format=CROP, seed=5, validation=True)[0])


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_the_built_in_music_has_as_many_channels_as_asked(channels):
    assert synthesis.music(np.random.default_rng(0), 1000, 44100, channels).shape == (1000, channels)


def test_a_name_that_is_no_text_is_used(tmp_path):
    good = tmp_path / os.fsdecode(b"\xff\xfe.wav")
    try:
        good.touch()
    except OSError:
        pytest.skip("this file system takes names of valid text alone")
    with open(good, "wb") as file:
        soundfile.write(file, np.random.default_rng(0).uniform(-1, 1, (44100, 2)), 44100, format="WAV")
    (tmp_path / os.fsdecode(b"\xfd.wav")).write_text("not audio")
    found = _scan(tmp_path)
    assert [track.audio.path for track in found.train] == [good]
    assert _random(found.train, 0)[0].any()
    ((_, reason),) = found.skipped
    assert "not audio" in reason
    good.unlink()
    with pytest.raises(DataError, match=r"\\udcfd.wav: not audio"):
        _scan(tmp_path)


def test_links_do_not_multiply_files(audio_folder):
    whole = _scan(audio_folder)
    (audio_folder / "loop").symlink_to(".")
    (audio_folder / "deeper" / "loop").symlink_to("..")
    assert _scan(audio_folder) == whole
    assert _scan(audio_folder, leave_out=(audio_folder / "deeper",)).fingerprint != whole.fingerprint


def test_a_record_has_the_file_and_position_of_its_origin(audio_folder):
    crop = CropFormat(length=2048, sample_rate=44100, channels=2, peak_normalize=False)
    files = [track for track in _scan(audio_folder).train if track.audio.sample_rate == 44100]
    crops = _random(files, 1, crop)
    assert crops.origin(5) is None
    record, origin = crops[5], crops.origin(5)
    whole, rate = soundfile.read(origin.file, dtype="float32")
    start = round(origin.start * rate)
    np.testing.assert_array_equal(record, whole[start : start + 2048])
    augmented = _random(files, 1, crop, augment=Augment(), period=6)
    np.testing.assert_array_equal(augmented[17], record)
    assert augmented.origin(17) == augmented.origin(5) == origin
    assert SyntheticCrops(format=CROP).origin(0).start is None


def test_the_origin_is_of_the_file_that_was_taken_in_place_of_a_bad_one(audio_folder):
    files = _scan(audio_folder).train
    gone = files[0].audio.name
    os.unlink(gone)
    crops = _random(files, health=Health(len(files), warn=str))
    for index in range(8):
        crops[index]
        assert crops.origin(index).file == files[1].audio.name


def test_only_the_last_origins_are_remembered():
    origins = Origins(most=2)
    for index in (0, 1, 0, 2):
        origins.remember(index, Origin(str(index)))
    assert [origins.get(index) and origins.get(index).file for index in range(3)] == ["0", None, "2"]


def test_another_order_is_another_draw_of_the_same_and_of_no_other_seed(audio_folder):
    files = _scan(audio_folder).train
    options = {"augment": Augment(gain_db=(-6.0, 6.0)), "read_timeout": 10.0}

    def synthetic(seed, **changes):
        return SyntheticCrops(format=CROP, seed=seed, **changes)

    for make in (functools.partial(_random, files), synthetic):
        crops = make(1, **options)
        np.testing.assert_array_equal(crops.in_order(0)[3], crops[3])
        np.testing.assert_array_equal(crops.in_order(2)[3], crops.in_order(1).in_order(2)[3])
        drawn = [crops[3], crops.in_order(1)[3], crops.in_order(2)[3], make(2)[3]]
        assert all((a != b).any() for i, a in enumerate(drawn) for b in drawn[:i])
    fixed = synthetic(1, period=2)
    np.testing.assert_array_equal(fixed.in_order(1)[3], fixed[1])


def test_another_order_shares_the_health_of_files_and_no_origins(audio_folder):
    files = _scan(audio_folder).train
    health = Health(len(files), warn=str)
    first = _random(files, 1, health=health)
    assert first[0].any()
    second = first.in_order(1)
    assert second.origin(0) is None
    os.unlink(files[0].audio.name)
    for index in range(8):
        second[index]
    assert health.is_bad(files[0].audio.name)
    assert first.origin(0) is not None
