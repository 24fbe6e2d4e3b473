import dataclasses

import numpy as np
import pytest
import soundfile

from audiovae_jax.data.audio import audio_file
from audiovae_jax.data.feeding.crops import CropFormat, FixedCrops, RandomCrops
from audiovae_jax.data.feeding.health import Health
from audiovae_jax.data.sets import catalog
from audiovae_jax.data.sets.catalog import Catalog, Excerpt, Track


@dataclasses.dataclass(frozen=True)
class Constant:
    """Audio of one value."""

    value: float
    frames: int
    sample_rate: int = 100
    channels: int = 1
    name: str = "constant"
    speakers: tuple[str, ...] | None = None

    def read(self, start, count):
        assert 0 <= start <= start + count <= self.frames
        return np.full((count, self.channels), self.value, np.float32)


def _catalog(value, seconds):
    tracks = tuple(Track(f"{i}", Constant(value, 100 * s)) for i, s in enumerate(seconds))
    return Catalog(tracks, tracks, (), catalog.fingerprint(tracks), f"tracks of {value}")


def _random(mixed, length):
    crop = CropFormat(length, 100, 1, peak_normalize=False)
    return RandomCrops(format=crop, tracks=mixed.train, health=Health(1))


def test_a_mix_draws_each_data_set_by_its_weight_whatever_its_length():
    mixed = catalog.mixed([(_catalog(0.1, [1000, 50]), 1.0), (_catalog(0.2, [3]), 3.0)], 0.1)
    crops = _random(mixed, 10)
    share = np.mean([np.isclose(crops[i][0, 0], 0.2) for i in range(2000)])
    assert share == pytest.approx(0.75, abs=0.04)  # four standard deviations
    assert mixed.origin == "25% of crops from tracks of 0.1; 75% of crops from tracks of 0.2"
    other = catalog.mixed([(_catalog(0.1, [1000, 50]), 1.0), (_catalog(0.2, [3]), 2.0)], 0.1)
    assert mixed.fingerprint != other.fingerprint


def test_tracks_shorter_than_a_crop_do_not_move_a_mixs_shares():
    mixed = catalog.mixed([(_catalog(0.1, [1000]), 0.9), (_catalog(0.2, [1] * 50), 0.1)], 20.0)
    crops = _random(mixed, 2000)
    assert np.mean([np.isclose(crops[i][0, 0], 0.2) for i in range(2000)]) == pytest.approx(0.1, abs=0.03)


def test_validation_hears_all_parts_by_their_shares():
    mixed = catalog.mixed([(_catalog(0.1, [10] * 30), 1.0), (_catalog(0.2, [10] * 5), 3.0)], 0.1)
    crop = CropFormat(10, 100, 1, peak_normalize=False)
    crops = FixedCrops(format=crop, tracks=mixed.validation, count=8, health=Health(1))
    assert sorted(float(crops[i][0, 0].round(3)) for i in range(8)) == pytest.approx([0.1] * 2 + [0.2] * 6)
    np.testing.assert_array_equal(crops[8], crops[0])  # of a batch's padding


def test_the_side_of_a_track_does_not_depend_on_the_others():
    keys = [f"song {i}" for i in range(200)]
    tracks = [Track(key, Constant(0.0, 100)) for key in keys]
    train, validation = catalog.by_hash(tracks, 0.2)
    assert 20 < len(validation) < 60
    assert len(train) + len(validation) == 200
    _, of_half = catalog.by_hash(tracks[::2], 0.2)
    assert {track.key for track in of_half} == {track.key for track in validation} & {t.key for t in tracks[::2]}


def _files(count, parts=1):
    return [
        Track(f"song {i}@{part}", Constant(0.0, 100, name=f"song {i}")) for i in range(count) for part in range(parts)
    ]


@pytest.mark.parametrize(("count", "least"), [(2, 1), (9, 1), (10, 3), (30, 3), (200, 3)])
def test_of_ten_files_three_validate(count, least):
    train, validation = catalog.by_hash(_files(count), 0.01)
    assert len(validation) == least
    assert len(train) + len(validation) == count
    assert not {track.key for track in train} & {track.key for track in validation}
    assert catalog.by_hash(_files(count)[::-1], 0.01)[1] == validation[::-1]
    # Whoever comes may take a place, but moves nobody else.
    more = {track.key for track in catalog.by_hash(_files(2 * count), 0.01)[1]}
    keys = {track.key for track in validation}
    assert {key for key in more if key in {track.key for track in _files(count)}} <= keys


def test_parts_of_one_file_are_one_file():
    _, validation = catalog.by_hash(_files(12, parts=10), 0.02)
    assert len({track.audio.name for track in validation}) >= 3
    assert len(catalog.by_hash(_files(1, parts=100), 0.001)[1]) == 1


def test_the_fingerprint_tells_another_split_apart_and_else_is_as_before():
    small, large = _files(9), _files(200)
    for tracks, fraction in ((small, 0.1), (small, 0.001), (large, 0.1)):
        assert catalog.fingerprint(tracks, fraction) == catalog.fingerprint(tracks)
    assert catalog.fingerprint(large, 0.001) != catalog.fingerprint(large)


def test_an_excerpt_reads_where_it_lies():
    class Counting(Constant):
        def read(self, start, count):
            return np.arange(start, start + count, dtype=np.float32)[:, None]

    excerpt = Excerpt(Counting(0.0, 1000), 200, 50)
    np.testing.assert_array_equal(excerpt.read(5, 3)[:, 0], [205, 206, 207])
    assert (excerpt.frames, excerpt.sample_rate, excerpt.channels, excerpt.name) == (50, 100, 1, "constant")


def test_the_fingerprint_tells_weights_apart():
    tracks = [Track("a", Constant(0.0, 100))]
    assert catalog.fingerprint(tracks) != catalog.fingerprint([dataclasses.replace(tracks[0], weight=2.0)])


def test_notices_count_the_files_whose_speakers_are_assumed():
    def track(name, channels, speakers=None):
        return Track(name, Excerpt(Constant(0.0, 1000, channels=channels, name=name, speakers=speakers), 0, 100))

    quad = ("FL", "FR", "BL", "BR")
    tracks = [track("a", 2), track("b", 6), track("b", 6), track("c", 6), track("d", 5), track("e", 4, quad)]
    assert catalog.notices(tracks) == [
        "1 file with 5 channels and no channel map, read as 5.0; the first: d",
        "2 files with 6 channels and no channel map, read as 5.1; the first: b",
    ]


def test_notices_count_the_files_that_are_decoded_from_the_beginning(tmp_path):
    audio = np.random.default_rng(0).uniform(-0.5, 0.5, 8000)
    for name, subtype in (("a.wav", "GSM610"), ("b.wav", "PCM_16")):
        soundfile.write(tmp_path / name, audio, 8000, subtype=subtype)
    tracks = [Track(name, audio_file.probe(tmp_path / name)) for name in ("a.wav", "b.wav")]
    (notice,) = catalog.notices(tracks)
    assert notice.startswith("1 file decoded from the beginning for every crop, which is slow; make shards")
    assert notice.endswith(f"the first: {tmp_path / 'a.wav'}")
