"""The layouts of published data sets, on trees like theirs."""

import numpy as np
import pytest
import scipy.stats
import soundfile

from audiovae_jax.data.feeding import pipeline
from audiovae_jax.data.feeding.crops import CropFormat, RandomCrops
from audiovae_jax.data.feeding.health import Health
from audiovae_jax.data.sets import gtzan, musdb18, probing, sources
from audiovae_jax.errors import DataError

OPTIONS = probing.Options(channels=2, num_threads=2)
CROP = CropFormat(length=64, sample_rate=8000, channels=2, peak_normalize=False)


def _write(path, value, seconds=0.1, rate=8000, channels=2):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(
        path, np.full((int(seconds * rate), channels), value), rate, subtype="FLOAT" if _wav(path) else None
    )


def _wav(path):
    return path.suffix == ".wav"


@pytest.fixture
def musdb(tmp_path):
    """Twenty songs to train on, all fourteen to validate on, one to test; a part tells itself by its value."""
    songs = [f"Artist {i} - Song" for i in range(20)]
    values = dict(zip(("mixture", *musdb18.STEMS), (0.1, 0.2, 0.3, 0.4, 0.5), strict=True))
    for folder, names in (("train", [*songs, *musdb18.VALIDATION_SONGS]), ("test", ["Someone - Else"])):
        for name in names:
            for part, value in values.items():
                _write(tmp_path / folder / name / f"{part}.wav", value)
    (tmp_path / "train" / songs[0] / "notes.wav").write_text("no part of it")
    return tmp_path


def test_musdb_has_its_official_split_and_no_song_on_both_sides(musdb, micro_config):
    found = sources.open_root(str(musdb), "auto", OPTIONS, micro_config.data)
    songs = {side: {track.key.split("/")[0] for track in getattr(found, side)} for side in ("train", "validation")}
    assert songs["validation"] == set(musdb18.VALIDATION_SONGS)
    assert len(musdb18.VALIDATION_SONGS) == 14
    assert len(songs["train"]) == 20
    assert not songs["train"] & songs["validation"]
    assert len(found.train) == 100
    assert {track.key.split("/")[1] for track in found.validation} == {"mixture.wav"}
    assert not found.skipped


@pytest.fixture
def elsewhere(tmp_path):
    """Puts what is on disk behind a URL."""
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")

    def put(folder):
        for path in folder.rglob("*"):
            if path.is_file():
                memory.pipe(f"/{folder.name}/{path.relative_to(folder).as_posix()}", path.read_bytes())
        return f"memory://{folder.name}"

    yield put
    memory.store.clear()


def test_musdb_behind_a_url_is_the_same(musdb, elsewhere, micro_config):
    here = sources.open_root(str(musdb), "auto", OPTIONS, micro_config.data)
    there = sources.open_root(elsewhere(musdb), "auto", OPTIONS, micro_config.data)
    assert there.fingerprint == here.fingerprint
    assert "MUSDB18" in there.origin
    np.testing.assert_array_equal(there.train[3].audio.read(5, 50), here.train[3].audio.read(5, 50))


@pytest.mark.parametrize("share", [0.25, 0.7])
def test_musdbs_mixtures_and_stems_are_drawn_by_their_shares(musdb, share):
    found = musdb18.scan(str(musdb), OPTIONS, share)
    crops = RandomCrops(format=CROP, tracks=found.train, health=Health(1))
    heard = np.array([crops[i][0, 0] for i in range(2000)])
    counts = [int(np.isclose(heard, value).sum()) for value in (0.1, 0.2, 0.3, 0.4, 0.5)]
    expected = 2000 * np.array([share, *[(1 - share) / 4] * 4])
    assert sum(counts) == 2000
    assert scipy.stats.chisquare(counts, expected).pvalue > 0.01


def test_musdb_as_mp4_names_the_command_and_an_incomplete_one_says_what_is_missing(tmp_path, musdb):
    stems = tmp_path / "stems"
    (stems / "train").mkdir(parents=True)
    (stems / "train" / "A - B.stem.mp4").touch()
    with pytest.raises(DataError, match="convert_musdb18"):
        musdb18.scan(str(stems), OPTIONS, 0.25)
    for name in musdb18.VALIDATION_SONGS:
        (musdb / "train" / name).rename(musdb / "train" / f"Moved {name}")
    with pytest.raises(DataError, match="none of the 14 official validation songs"):
        musdb18.scan(str(musdb), OPTIONS, 0.25)
    with pytest.raises(DataError, match="is not MUSDB18-HQ"):
        musdb18.scan(str(tmp_path / "test"), OPTIONS, 0.25)


@pytest.mark.parametrize(("folder", "suffix"), [("genres", "au"), ("genres_original", "wav"), ("", "wav")])
def test_gtzan_is_split_by_sorted_name_within_each_genre(tmp_path, micro_config, folder, suffix):
    for genre in ("blues", "rock", "jazz"):
        for i in range(20):
            _write(tmp_path / folder / genre / f"{genre}.{i:05d}.{suffix}", 0.1, channels=1)
    (tmp_path / folder / "jazz" / f"jazz.00003.{suffix}").write_text("as the published one has it")
    found = sources.open_root(str(tmp_path), "auto", OPTIONS, micro_config.data)
    train, validation = ({track.key for track in side} for side in (found.train, found.validation))
    assert validation == {f"{g}/{g}.{i:05d}.{suffix}" for g in ("blues", "rock", "jazz") for i in (16, 17)}
    assert len(train) == 3 * 16 - 1
    assert not train & validation
    ((name, reason),) = found.skipped
    assert name.endswith(f"jazz.00003.{suffix}")
    assert "not audio" in reason


def test_gtzan_behind_a_url_is_the_same(tmp_path, elsewhere, micro_config):
    root = tmp_path / "gtzan"
    for genre in ("blues", "rock"):
        for i in range(10):
            _write(root / "genres" / genre / f"{genre}.{i:05d}.wav", 0.3)
    here = sources.open_root(str(root), "auto", OPTIONS, micro_config.data)
    there = sources.open_root(elsewhere(root), "auto", OPTIONS, micro_config.data)
    assert there.fingerprint == here.fingerprint
    assert "GTZAN" in there.origin


def test_roots_are_spelt_as_people_spell_them(tmp_path, micro_config, monkeypatch):
    root = tmp_path / "Müsik und mehr"
    for name in "abc":
        _write(root / f"{name}.wav", 0.3)
    monkeypatch.setenv("HOME", str(tmp_path))
    for spelt in (str(root), root.as_uri(), root.as_uri().replace("file://", "file://localhost"), f"~/{root.name}"):
        found = sources.open_root(spelt, "auto", OPTIONS, micro_config.data)
        assert len(found.train) + len(found.validation) == 3
    _write(root / "slow.wav", 0.3, seconds=30, rate=4)
    (skipped,) = sources.open_root(str(root), "auto", OPTIONS, micro_config.data).skipped
    assert skipped[1] == "its sample rate of 4 Hz is outside the range of audio (1 kHz to 10 MHz)"


def test_no_gtzan_says_so(tmp_path):
    with pytest.raises(DataError, match="is not GTZAN"):
        gtzan.scan(str(tmp_path), OPTIONS)
    for genre in ("blues", "rock"):
        _write(tmp_path / genre / "one.wav", 0.1)
    with pytest.raises(DataError, match="needs ten files"):
        gtzan.scan(str(tmp_path), OPTIONS)


def test_a_file_as_root_says_what_to_give(tmp_path, micro_config):
    _write(tmp_path / "a.wav", 0.5)
    micro_config.data.root = str(tmp_path / "a.wav")
    with pytest.raises(DataError, match=r"a.wav: is a file; give its folder, or a manifest"):
        pipeline.open_data(micro_config.data, batch_size=2, seed=0)


def _add_intruders(root, folder):
    """What macOS, Jupyter and file managers leave behind, with copies of audio among it."""
    audio = next(path for path in sorted(folder.rglob("*.wav"))).read_bytes()
    for name, content in (
        ("._a.wav", b"\x00\x05\x16\x07"),
        (".ipynb_checkpoints/a-checkpoint.wav", audio),
        (".Trash-1000/files/a.wav", audio),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (root / "__MACOSX" / "genres").mkdir(parents=True)
    (root / "__MACOSX" / "genres" / "a.wav").write_bytes(audio)


@pytest.mark.parametrize("behind_url", [False, True])
def test_gtzan_is_split_as_ever_with_hidden_files_in_it(tmp_path, elsewhere, micro_config, behind_url):
    root = tmp_path / "with_hidden_files"
    for genre in ("blues", "rock"):
        for i in range(20):
            _write(root / "genres" / genre / f"{genre}.{i:05d}.wav", 0.1, channels=1)
    clean = gtzan.scan(str(root), OPTIONS)
    _add_intruders(root, root / "genres" / "blues")
    place = elsewhere(root) if behind_url else str(root)
    found = sources.open_root(place, "auto", OPTIONS, micro_config.data)
    for side in ("train", "validation"):
        assert [track.key for track in getattr(found, side)] == [track.key for track in getattr(clean, side)]
    assert found.fingerprint == clean.fingerprint
    assert not found.skipped
    left_out = {name.removeprefix(f"{place}/genres/blues/") for name, _ in found.ignored}
    assert left_out == {"._a.wav", ".ipynb_checkpoints", ".Trash-1000"}


@pytest.mark.parametrize("behind_url", [False, True])
def test_musdb_is_as_ever_with_hidden_files_in_it(musdb, elsewhere, micro_config, behind_url):
    clean = sources.open_root(str(musdb), "auto", OPTIONS, micro_config.data)
    _add_intruders(musdb, musdb / "train" / "Artist 1 - Song")
    (musdb / "train" / "Artist 1 - Song" / "._vocals.wav").write_bytes(b"\x00\x05\x16\x07")
    (musdb / "train" / ".ipynb_checkpoints").mkdir()
    (musdb / "train" / ".ipynb_checkpoints" / "mixture.wav").write_bytes(b"RIFF")
    place = elsewhere(musdb) if behind_url else str(musdb)
    found = sources.open_root(place, "auto", OPTIONS, micro_config.data)
    assert (found.fingerprint, found.skipped) == (clean.fingerprint, ())
    assert [track.key for track in found.train] == [track.key for track in clean.train]


def test_a_folder_of_hidden_stems_is_not_musdb(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "._A - B.stem.mp4").touch()
    assert musdb18.recognise(str(tmp_path), OPTIONS) is None


@pytest.mark.parametrize("behind_url", [False, True])
def test_a_folder_ends_no_run_by_its_hidden_files(tmp_path, elsewhere, micro_config, behind_url):
    root = tmp_path / "songs"
    for name in "abcd":
        _write(root / f"{name}.wav", 0.3)
    clean = sources.open_root(str(root), "auto", OPTIONS, micro_config.data)
    for name in "abcd":
        (root / f"._{name}.wav").write_bytes(b"\x00\x05\x16\x07")
    micro_config.data.root, micro_config.data.index = elsewhere(root) if behind_url else str(root), False
    micro_config.data.max_bad_share = 0.0
    data = pipeline.open_data(micro_config.data, batch_size=2, seed=0)
    data.health.require_few()
    assert data.fingerprint == clean.fingerprint
    assert len(data.catalog.ignored) == 4


def test_a_root_without_audio_that_is_read_says_what_it_has(tmp_path, micro_config):
    for name in ("a.amr", "b.amr", "c.tgz", "d.jpg"):
        (tmp_path / name).touch()
    with pytest.raises(DataError) as caught:
        sources.open_root(str(tmp_path), "auto", OPTIONS, micro_config.data)
    assert ".amr is not read; convert it to FLAC" in str(caught.value)
    assert "2, the first is" in str(caught.value)
    assert ".tgz cannot be read at random positions" in str(caught.value)
    with pytest.raises(DataError, match=r"part.tar.gz: .tar.gz cannot be read at random positions; unpack it"):
        sources.open_root(str(tmp_path / "part.tar.gz"), "auto", OPTIONS, micro_config.data)
