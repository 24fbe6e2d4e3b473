import json
import os
import time

import numpy as np
import pytest
import soundfile

from audiovae_jax.data.audio import audio_file, remote
from audiovae_jax.data.audio.audio_file import AudioFile
from audiovae_jax.data.sets import bandwidth, folder, probing
from audiovae_jax.data.sets.catalog import Excerpt, Track


@pytest.fixture
def probes(monkeypatch):
    """Counts how many files are opened."""
    real, calls = audio_file.probe, []

    def probe(*args, **options):
        calls.append(args[0].name)
        return real(*args, **options)

    monkeypatch.setattr(audio_file, "probe", probe)
    return calls


def test_a_second_scan_opens_what_has_changed_alone(audio_folder, tmp_path, probes):
    (audio_folder / "bad.wav").write_text("not audio")
    options = probing.Options(channels=2, index_folder=tmp_path / "index")
    first = folder.scan(str(audio_folder), options, 0.1)
    assert len(probes) == 4
    assert folder.scan(str(audio_folder), options, 0.1) == first
    assert len(probes) == 4
    soundfile.write(audio_folder / "bad.wav", np.full((44100, 2), 0.1), 44100)
    (audio_folder / "c.ogg").unlink()
    again = folder.scan(str(audio_folder), options, 0.1)
    assert probes[4:] == ["bad.wav"]
    assert not again.skipped
    assert len(again.train) + len(again.validation) == 3
    (index,) = (tmp_path / "index").iterdir()
    assert len(json.loads(index.read_text())["files"]) == 3


def test_the_index_serves_other_settings_and_damage_does_no_harm(audio_folder, tmp_path, probes):
    options = probing.Options(channels=2, index_folder=tmp_path / "index")
    first = folder.scan(str(audio_folder), options, 0.1)
    stricter = probing.Options(channels=2, min_seconds=0.6, index_folder=tmp_path / "index")
    with pytest.raises(Exception, match=r"shorter than data.min_seconds=0.6"):
        folder.scan(str(audio_folder), stricter, 0.1)
    (index,) = (tmp_path / "index").iterdir()
    for damage in (
        '{"version": 2, "files": [',
        '{"version": 2, "files": {"a": 3}}',
        '{"version": 1, "files": {}}',
        "[]",
    ):
        index.write_text(damage)
        assert folder.scan(str(audio_folder), options, 0.1) == first
    nowhere = tmp_path / "file"
    nowhere.touch()
    unwritable = probing.Options(channels=2, index_folder=nowhere / "index")
    assert folder.scan(str(audio_folder), unwritable, 0.1) == first


def test_the_index_keeps_the_speakers(tmp_path, probes):
    soundfile.write(tmp_path / "a.flac", np.full((4800, 5), 0.1), 48000)
    soundfile.write(tmp_path / "b.wav", np.full((4800, 5), 0.1), 48000)
    options = probing.Options(channels=2, index_folder=tmp_path / "index")
    places = [tmp_path / "a.flac", tmp_path / "b.wav"]
    first = probing.probe(str(tmp_path), places, options)
    assert [file.speakers for file in first] == [("FL", "FR", "FC", "BL", "BR"), None]
    assert probing.probe(str(tmp_path), places, options) == first
    assert len(probes) == 2


def test_a_file_that_changes_within_its_size_is_looked_at_again(audio_folder, tmp_path, probes):
    options = probing.Options(channels=2, index_folder=tmp_path / "index")
    folder.scan(str(audio_folder), options, 0.1)
    size = (audio_folder / "a.wav").stat().st_size
    (audio_folder / "a.wav").write_bytes(bytes(size))
    os.utime(audio_folder / "a.wav", ns=(1, 1))
    (skipped,) = folder.scan(str(audio_folder), options, 0.1).skipped
    assert skipped[0].endswith("a.wav")


def _noise(path, cutoff, rate=44100):
    spectrum = np.fft.rfft(np.random.default_rng(0).standard_normal(rate))
    spectrum[int(cutoff) :] = 0
    audio = np.fft.irfft(spectrum)
    soundfile.write(path, 0.5 * audio / np.abs(audio).max(), rate, subtype="FLOAT")
    return Track(path.name, audio_file.probe(path))


@pytest.mark.parametrize("cutoff", [4000, 11000, 16000, 22050])
def test_where_a_spectrum_ends(tmp_path, cutoff):
    assert bandwidth.measure(_noise(tmp_path / "noise.wav", cutoff).audio) == pytest.approx(cutoff, abs=60)


def test_full_spectra_are_drawn_by_their_share(tmp_path, monkeypatch):
    tracks = [_noise(tmp_path / f"{i}.wav", cutoff) for i, cutoff in enumerate((22050, 22050, 8000, 8000, 8000, 8000))]
    tracks.append(Track("part", Excerpt(tracks[0].audio, 1000, 40000)))
    measured = []

    def measure(audio):
        measured.append(audio.name)
        return actual(audio)

    actual = bandwidth.measure
    monkeypatch.setattr(bandwidth, "measure", measure)
    options = probing.Options(channels=1, index_folder=tmp_path / "index")

    def weights(tracks):
        return [track.weight for track in bandwidth.balanced(tracks, 0.9, 44100, options, "noise")]

    first = weights(tracks)
    share = [weight * track.seconds for weight, track in zip(first, tracks, strict=True)]
    assert sum((*share[:2], share[6])) / sum(share) == pytest.approx(0.9)
    assert len(measured) == 7
    # A second time none is listened to but one that has changed.
    assert weights(tracks) == first
    assert len(measured) == 7
    tracks[1] = _noise(tmp_path / "1.wav", 8100)
    assert weights(tracks)[1] < first[1]
    assert measured[7:] == [str(tmp_path / "1.wav")]
    assert weights(tracks[2:4]) == [1.0, 1.0]  # there is nothing to balance


def test_a_spectrum_behind_a_url_is_measured_for_as_long_as_requests_are_retried(monkeypatch):
    def measure(audio):
        time.sleep(0.3)  # an outage
        return {"wide": 22050.0, "narrow": 8000.0}[audio.path.url.rpartition("/")[2]]

    monkeypatch.setattr(bandwidth, "measure", measure)
    access = remote.Access(retry_seconds=30.0)
    tracks = [
        Track(name, AudioFile(remote.RemoteFile(f"s3://bucket/{name}", 1000, access), 44100, 44100, 1))
        for name in ("wide", "narrow", "wide")
    ]
    options = probing.Options(channels=1, read_timeout=0.1, access=access)
    weights = [track.weight for track in bandwidth.balanced(tracks, 0.9, 44100, options, "urls")]
    assert weights == pytest.approx([0.45, 0.1, 0.45])


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="the superuser may read everything")
def test_what_may_not_be_read_today_may_tomorrow(audio_folder, tmp_path):
    options = probing.Options(channels=2, index_folder=tmp_path / "index")
    (audio_folder / "a.wav").chmod(0)
    (skipped,) = folder.scan(str(audio_folder), options, 0.1).skipped
    assert skipped[1] == "Permission denied"
    (audio_folder / "a.wav").chmod(0o644)
    assert not folder.scan(str(audio_folder), options, 0.1).skipped


def test_what_a_server_refuses_is_asked_for_again(tmp_path, monkeypatch):
    asked = []

    def look(place):
        asked.append(place)
        raise remote.RefusedError(place.url, "access is refused")

    monkeypatch.setattr(audio_file, "probe", look)
    place = remote.RemoteFile("s3://bucket/a.wav", 100, remote.Access(), "mark")
    options = probing.Options(channels=2, index_folder=tmp_path / "index")
    for _ in range(2):
        assert probing.probe("s3://bucket", [place], options) == ["s3://bucket/a.wav: access is refused"]
    assert len(asked) == 2
