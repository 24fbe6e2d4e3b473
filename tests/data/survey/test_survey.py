import dataclasses
import re

import numpy as np
import pytest
import soundfile

from audiovae_jax.data.feeding import pipeline
from audiovae_jax.data.sets.catalog import Track
from audiovae_jax.data.survey import page, survey, text
from audiovae_jax.errors import DataError


def _surveyed(config, root, limit=100, seconds=0.05):
    config.data.root, config.data.index = str(root), False
    data = pipeline.open_data(config.data, batch_size=2, seed=0)
    return survey.make(config.data, data, root=str(root), batch_size=2, limit=limit, seconds=seconds)


@pytest.fixture
def mixed_folder(audio_folder):
    """Three good files (two of 44.1 kHz stereo, one of 22.05 kHz mono), one that is half silent, and bad ones."""
    audio = 0.3 * np.random.default_rng(1).standard_normal((44100, 2))
    audio[:22050] = 0
    soundfile.write(audio_folder / "half.wav", audio, 44100)
    for size in (10, 20):
        soundfile.write(audio_folder / f"short{size}.wav", audio[-size:], 44100)
    (audio_folder / "<script>.wav").write_bytes(b"nonsense")
    return audio_folder


def test_the_survey_of_a_folder(micro_config, mixed_folder):
    micro_config.data.max_bad_share = 0.5
    found = _surveyed(micro_config, mixed_folder)
    assert (found.total.tracks, found.train.tracks + found.validation.tracks, found.files) == (4, 4, 7)
    assert found.total.hours == pytest.approx(2.5 / 3600)
    assert {rate: amount.tracks for rate, amount in found.sample_rates.items()} == {22050: 1, 44100: 3}
    assert {n: amount.tracks for n, amount in found.channel_counts.items()} == {1: 1, 2: 3}
    assert sorted(found.lengths) == [0.5, 0.5, 0.5, 1.0]
    assert survey.silence(found) == pytest.approx(0.5 / 2.5, abs=0.03)
    assert found.reading.crops_per_second > 1
    assert found.reading.threads == 1
    assert found.refusal is None
    reasons = {entry.reason: entry.files for entry in found.skipped}
    assert reasons.pop("N samples are shorter than data.min_seconds=0.1") == 2
    (reason,) = reasons
    assert "not audio that can be read" in reason
    doubts = "\n".join(found.doubts)
    for said in (
        "1 of 4 tracks (25%): less than 44100 Hz",
        "1 of 4 tracks (25%): mono in a run of 2 channels",
        "1 of 4 tracks (25%): silent for more than 20%",
        "1 of 4 tracks (25%): nothing above 17.6 kHz",
    ):
        assert said in doubts
    assert "shorter than a crop" not in doubts
    said = "\n".join(text.lines(found))
    assert "22050 Hz, converted to 44100: 1 track, 0.0 min" in said
    assert "all 4 tracks" in said
    micro_config.data.crop_length = 32768
    assert "3 of 4 tracks (75%): shorter than a crop of 0.74 s" in "\n".join(
        _surveyed(micro_config, mixed_folder).doubts
    )


def test_good_data_raises_no_doubt(micro_config, tmp_path):
    rng = np.random.default_rng(0)
    for name in "abc":
        soundfile.write(tmp_path / f"{name}.wav", 0.1 * rng.standard_normal((44100, 2)), 44100)
    found = _surveyed(micro_config, tmp_path, seconds=0)
    assert (found.doubts, found.skipped, found.reading) == ((), (), None)


def test_assumed_speakers_and_levels_far_above_full_scale_are_doubts(micro_config, audio_folder):
    noise = np.random.default_rng(0).uniform(-20, 20, (22050, 6))
    soundfile.write(audio_folder / "loud.wav", noise[:, :2], 44100, subtype="FLOAT")
    soundfile.write(audio_folder / "surround.wav", 0.01 * noise, 44100)
    doubts = "\n".join(_surveyed(micro_config, audio_folder, seconds=0).doubts)
    assert "1 file with 6 channels and no channel map, read as 5.1; the first: " in doubts
    assert f"1 file far above full scale; the loudest: {audio_folder}/loud.wav peaks at +26.0 dBFS" in doubts
    assert "1 of 5 tracks (20%): a peak above +18 dBFS" in doubts


def test_training_would_refuse_what_is_refused_here(micro_config, mixed_folder):
    micro_config.data.max_bad_share = 0.1
    found = _surveyed(micro_config, mixed_folder)
    assert "3 of 7 files cannot be used, more than data.max_bad_share=0.1" in found.refusal
    # A file that is intact at its beginning, middle and end, but damaged elsewhere.
    for path in mixed_folder.glob("*.wav"):
        path.unlink()
    audio = np.full((44100, 2), 0.1, np.float32)
    audio[10000] = np.nan
    soundfile.write(mixed_folder / "holds_nan.wav", audio, 44100, subtype="FLOAT")
    found = _surveyed(micro_config, mixed_folder, seconds=0)
    assert [name for name, _ in found.unreadable] == [str(mixed_folder / "holds_nan.wav")]
    assert "1 of the tracks passed the first checks, but are unreadable" in found.doubts[-1]
    assert "1 of them passed the first checks, and would end the run" in found.refusal
    audio[3000:20000] = audio[25000:40000] = np.nan
    soundfile.write(mixed_folder / "holds_nan.wav", audio, 44100, subtype="FLOAT")
    with pytest.warns(UserWarning, match="another crop is used"):
        found = _surveyed(micro_config, mixed_folder, seconds=10.0)
    assert found.reading is None
    assert "1 of 3 files cannot be used, more than data.max_bad_share=0.1 allows" in found.refusal


def test_the_built_in_generator_is_no_data_set(micro_config):
    data = pipeline.open_data(micro_config.data, batch_size=1, seed=0)
    with pytest.raises(DataError, match="the built-in generator"):
        survey.make(micro_config.data, data, root="", batch_size=1, limit=1, seconds=0)


def test_a_sample_is_spread_evenly():
    tracks = [Track(str(i), None) for i in range(10)]
    assert [track.key for track in survey.spread(tracks, 4)] == ["0", "2", "5", "7"]
    assert survey.spread(tracks, 10) == survey.spread(tracks, 99) == tracks


def test_a_sample_is_called_one(micro_config, mixed_folder):
    found = _surveyed(micro_config, mixed_folder, limit=2, seconds=0)
    assert len(found.measured) == 2
    assert "2 of 4 tracks, spread evenly over all (--limit)" in text.listened_to(found)


def test_reasons_that_differ_in_numbers_are_one():
    found = survey.grouped([("a", "x 1 of 5"), ("b", "y"), ("c", "x 2 of 5"), ("d", "x 3 of 5"), ("e", "x 4 of 5")])
    assert found == (survey.Skipped("x N of 5", 4, ("a", "c", "d")), survey.Skipped("y", 1, ("b",)))


def test_a_page_needs_no_other_file_and_escapes_names(micro_config, mixed_folder, tmp_path):
    found = dataclasses.replace(_surveyed(micro_config, mixed_folder, seconds=0), root="\udcff<i>$x$")
    measured = [dataclasses.replace(track, name="<b>\udcff", silence=0.5) for track in found.measured]
    found = dataclasses.replace(found, measured=tuple(measured))
    page.write(found, tmp_path / "page.html")
    content = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<script>" not in content
    assert "&lt;script&gt;.wav" in content
    assert "<title>Data set: \\udcff&lt;i&gt;$x$</title>" in content
    assert "<td>&lt;b&gt;\\udcff</td>" in content
    assert content.count("<svg") == 5  # all but the bandwidth, which is the same
    assert ">minutes<" in content
    assert ">hours<" not in content
    assert "http" not in content.replace("http-equiv", "")
    page.write(found, tmp_path / "page.png")
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")


def test_files_that_are_alike_have_no_histogram_and_no_bars_of_characters(micro_config, mixed_folder, tmp_path):
    found = _surveyed(micro_config, mixed_folder, seconds=0)
    measured = [dataclasses.replace(found.measured[0], silence=0.0, band_hz=hz) for hz in (21900.0, 22050.0)]
    alike = dataclasses.replace(
        found,
        lengths=(15.0, 15.001),
        measured=tuple(measured),
        sample_rates={44100: found.total},
        validation=survey.Amount(0, 0.0),
    )
    page.write(alike, tmp_path / "alike.html")
    content = (tmp_path / "alike.html").read_text()
    assert "<svg" not in content
    assert "##" not in content
    facts = re.findall(r"<b>(.*?)</b><small>(.*?)</small>", content.split("Alike in all tracks")[1])
    assert ("15 s", f"2 tracks; a crop: {alike.crop_seconds:.3g} s") in facts
    assert ("44.1 kHz", "all tracks") in facts
    assert any(value == "21.9 to 22.05 kHz" for value, _ in facts)
    mixed = dataclasses.replace(alike, lengths=(1.0, 15.0))
    page.write(mixed, tmp_path / "mixed.html")
    content = (tmp_path / "mixed.html").read_text()
    assert content.count("<svg") == 1
    assert "s (log scale)" in content
    assert "####" in "\n".join(text.lines(mixed))


def test_plots_of_next_to_nothing(micro_config, audio_folder):
    """With one track, with no measured track, and with only silence."""
    found = _surveyed(micro_config, audio_folder, seconds=0)
    silent = dataclasses.replace(found.measured[0], silence=1.0, band_hz=0.0, loudness_lufs=None)
    silent = dataclasses.replace(found, measured=(silent,))
    assert len(page.plots(silent).axes) == 6
    assert "none: all tracks are silent or too short" in "\n".join(text.lines(silent))
    assert len(page.plots(dataclasses.replace(found, measured=(), lengths=(0.5,))).axes) == 6
    assert "listened to" in "\n".join(text.lines(dataclasses.replace(found, measured=())))


def test_what_is_left_out_is_counted_by_reason_and_not_as_bad(micro_config, audio_folder):
    for name in ("._a.wav", "deeper/._b.flac", ".ipynb_checkpoints/a.wav", "x.amr", "y.amr", "z.tar.gz", "cover.jpg"):
        (audio_folder / name).parent.mkdir(exist_ok=True)
        (audio_folder / name).write_bytes(b"\x00\x05\x16\x07")
    micro_config.data.max_bad_share = 0.0
    found = _surveyed(micro_config, audio_folder, seconds=0)
    assert (found.files, found.skipped, found.refusal) == (3, (), None)
    counts = {entry.reason.split(" ")[0]: entry.files for entry in found.ignored}
    assert counts == {"hidden": 3, ".amr": 2, ".tar.gz": 1}
    said = "\n".join(text.lines(found))
    assert "left out          3  hidden files and folders, such as those of macOS and Jupyter, are left out: " in said
    assert "2  .amr is not read; convert it to FLAC" in said
    assert "duplicates    none among all tracks" in said
