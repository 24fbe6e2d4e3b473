import json

import numpy as np
import pytest
import soundfile

from audiovae_jax.data.feeding import pipeline
from audiovae_jax.data.feeding.augment import Augment
from audiovae_jax.data.feeding.crops import CropFormat, RandomCrops, SyntheticCrops
from audiovae_jax.data.feeding.health import Health
from audiovae_jax.data.sets import folder, probing
from audiovae_jax.errors import DataError

CROP = CropFormat(length=512, sample_rate=44100, channels=2)


def _random(tracks, crop=CROP):
    return RandomCrops(format=crop, tracks=tracks, health=Health(len(tracks), warn=str))


def test_bad_files_are_listed_once_and_end_the_run_above_the_share(tmp_path):
    warned = []
    health = Health(10, [("a", "empty")], max_share=0.2, warn=warned.append)
    path = tmp_path / "bad_files.jsonl"
    health.list_in(path)
    for _ in range(3):
        health.replaced("b", "b: gone")
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"file": "a", "reason": "empty"},
        {"file": "b", "reason": "b: gone"},
    ]
    assert warned == ["another crop is used instead of b: gone"]
    assert (health.bad_files, health.replaced_crops) == (2, 3)
    with pytest.raises(DataError, match=r"3 of 10 files cannot be used, more than data.max_bad_share=0.2 allows"):
        health.replaced("c", "c: gone")
    with pytest.raises(DataError, match="3 of 10 files"):
        Health(10, [("a", ""), ("b", ""), ("c", "")], max_share=0.2).list_in(path)


def test_a_bad_file_is_a_python_warning_without_a_callback():
    with pytest.warns(UserWarning, match="another crop is used instead of b: gone"):
        Health(10).replaced("b", "b: gone")


def test_bad_files_of_an_earlier_run_still_count(tmp_path):
    path = tmp_path / "bad_files.jsonl"
    first = Health(10, [("a", "empty")], names=("a", "b", "c"), warn=str)
    first.list_in(path)
    first.replaced("b", "b: gone")
    path.write_text(path.read_text() + '{"file": "x", "reason": "of another data set"}\n{"file": "c"')
    second = Health(10, [("a", "empty")], names=("a", "b", "c"))
    second.list_in(path)
    assert [json.loads(line)["file"] for line in path.read_text().splitlines()] == ["a", "b"]
    with pytest.raises(DataError, match="2 of 10 files"):
        Health(10, [("a", "empty")], max_share=0.1, names=("a", "b", "c")).list_in(path)


def test_a_crop_does_not_depend_on_what_was_found_bad_before(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(8):
        audio = 0.5 * rng.uniform(-1, 1, (5 * 8000, 2))
        if i % 2:
            audio[3 * 8000 : 4 * 8000] = np.nan  # where probing the beginning, middle and end does not find it
        soundfile.write(tmp_path / f"{i}.wav", audio, 8000, subtype="FLOAT")
    found = folder.scan(str(tmp_path), probing.Options(channels=2), 0.1)
    crop = CropFormat(1000, 8000, 2)
    forward, backward = _random(found.train, crop), _random(found.train, crop)
    other = {i: backward[i] for i in range(59, -1, -1)}
    for i in range(60):
        np.testing.assert_array_equal(forward[i], other[i])


def test_one_bad_file_that_is_most_of_the_audio_does_not_end_a_run(tmp_path):
    rng = np.random.default_rng(0)
    bad = 0.5 * rng.uniform(-1, 1, (60 * 8000, 2))
    bad[1000:230_000] = bad[250_000:470_000:2].mean() * np.nan
    bad[230_000:239_000] = bad[241_500:479_000] = np.nan
    soundfile.write(tmp_path / "bad.wav", bad, 8000, subtype="FLOAT")
    for i in range(4):
        soundfile.write(tmp_path / f"{i}.wav", 0.5 * rng.uniform(-1, 1, (1000, 2)), 8000, subtype="FLOAT")
    found = folder.scan(str(tmp_path), probing.Options(channels=2), 0.1)
    train = [*found.train, *found.validation]
    crops = _random(train, CropFormat(500, 8000, 2))
    assert all(np.isfinite(crops[i]).all() for i in range(100))


def _break(folder):
    """Break thirty of a thousand files in eight ways, five of them only during the run."""
    rng = np.random.default_rng(0)
    good = 0.5 * rng.uniform(-1, 1, (2048, 2))
    for i in range(970):
        soundfile.write(folder / f"{i:04d}.wav", good, 44100)
    later = []
    for i in range(30):
        path = folder / f"bad{i:02d}.wav"
        soundfile.write(path, good, 44100, subtype="FLOAT")
        kind = i % 8
        if kind == 0:
            path.write_bytes(b"")
        elif kind == 1:
            path.write_bytes(b"not audio")
        elif kind == 2:
            path.unlink()
            path = path.with_suffix(".flac")
            soundfile.write(path, good, 44100)
            path.write_bytes(path.read_bytes()[:3000])
        elif kind == 3:
            soundfile.write(path, np.full((2048, 2), np.nan), 44100, subtype="FLOAT")
        elif kind == 4:
            soundfile.write(path, good[:9], 44100)
        elif kind == 5:
            soundfile.write(path, 0 * good, 44100)
        elif kind == 6:
            path.unlink()
            path.symlink_to(f"nowhere{i}.wav")
        else:
            later.append(path)
    return later


def test_three_in_a_hundred_bad_files_do_not_end_a_run(tmp_path, micro_config):
    audio = tmp_path / "audio"
    audio.mkdir()
    later = _break(audio)
    config = micro_config.data
    config.root, config.crop_length, config.min_seconds = str(audio), 512, 0.01
    data = pipeline.open_data(config, batch_size=4, seed=0, warn=str)
    assert data.health.bad_files == 27
    data.health.list_in(tmp_path / "bad.jsonl")
    for path in later:
        path.unlink()  # deleted
    whole = [data.train[i] for i in range(1500)]
    assert 27 < data.health.bad_files <= 30
    reasons = [json.loads(line)["reason"] for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    wanted = ("empty", "not audio", "truncated", "NaN", "shorter", "zero", "No such file")
    assert all(any(kind in reason for reason in reasons) for kind in wanted)
    config.max_bad_share = 0.01
    with pytest.raises(DataError, match=r"27 of 997 files cannot be used, more than data.max_bad_share=0.01"):
        pipeline.open_data(config, batch_size=4, seed=0).health.list_in(tmp_path / "bad.jsonl")
    assert np.isfinite(whole).all()


def test_augmentations_are_the_crops_own_and_off_by_default():
    plain = SyntheticCrops(format=CROP)

    def augmented(**changes):
        return SyntheticCrops(format=CROP, augment=Augment(**changes))

    np.testing.assert_array_equal(augmented()[3], plain[3])
    turned = augmented(polarity_probability=1.0)
    np.testing.assert_array_equal(turned[3], -plain[3])
    swapped = augmented(swap_probability=1.0)
    np.testing.assert_array_equal(swapped[3], plain[3][:, ::-1])
    louder = augmented(gain_db=(-12.0, 0.0))
    gains = [20 * np.log10(np.abs(louder[i]).max() / np.abs(plain[i]).max()) for i in range(100)]
    assert -12 <= min(gains) < -11
    assert -1 < max(gains) <= 1e-5
    both = augmented(gain_db=(-12.0, 0.0), polarity_probability=1.0)
    # Neither change affects the other's random number.
    np.testing.assert_array_equal(both[3], -louder[3])
    half = augmented(polarity_probability=0.5)
    assert 20 < sum((half[i] == -plain[i]).all() for i in range(60)) < 40


def test_quiet_crops_are_drawn_again_and_short_files_are_padded(tmp_path):
    audio = np.zeros((44100, 2))
    audio[30000:31000] = 0.5
    soundfile.write(tmp_path / "mostly silent.wav", audio, 44100, subtype="FLOAT")
    soundfile.write(tmp_path / "short.wav", np.linspace(0.1, 0.2, 100)[:, None], 44100, subtype="FLOAT")
    found = folder.scan(str(tmp_path), probing.Options(channels=2), 0.1)
    tracks = {t.key: t for t in (*found.train, *found.validation)}
    silent = _random([tracks["mostly silent.wav"]])
    assert np.mean([silent[i].any() for i in range(50)]) < 0.3
    loud = _random([tracks["mostly silent.wav"]], CropFormat(512, 44100, 2, min_loudness_db=-40.0))
    assert np.mean([loud[i].any() for i in range(50)]) > 0.3
    looped = _random([tracks["short.wav"]], CropFormat(512, 44100, 2, False, loop=True))[0]
    np.testing.assert_array_equal(looped[100:200], looped[:100])
    assert not _random([tracks["short.wav"]], CropFormat(512, 44100, 2, False))[0][100:].any()
