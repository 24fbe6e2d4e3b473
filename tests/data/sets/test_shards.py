import dataclasses
import io
import json
import tarfile
import threading

import numpy as np
import pytest
import soundfile

from audiovae_jax.data.audio.audio_file import read_window
from audiovae_jax.data.feeding.crops import CropFormat, FixedCrops, RandomCrops
from audiovae_jax.data.feeding.health import Health
from audiovae_jax.data.sets import folder, probing, shard_writer, sharding, shards, sources
from audiovae_jax.errors import DataError

OPTIONS = probing.Options(channels=1, num_threads=2)
CROP = CropFormat(length=5000, sample_rate=44100, channels=2)
SETTINGS = {"record_seconds": 0.05, "shard_bytes": 100_000, "num_threads": 2, "say": lambda line: None}


@pytest.fixture
def audio(tmp_path):
    """Eight files of every kind that matters: 16 and 24 bits, floating point, lossy, mono, another rate."""
    root = tmp_path / "audio"
    root.mkdir()
    rng = np.random.default_rng(0)
    kinds = (
        ("a.wav", "PCM_16", 44100, 2), ("b.wav", "PCM_24", 44100, 2), ("c.wav", "FLOAT", 44100, 2),
        ("d.flac", "PCM_16", 44100, 1), ("e.ogg", "VORBIS", 44100, 2), ("f.wav", "PCM_16", 22050, 2),
        ("g.wav", "DOUBLE", 44100, 1), ("h.wav", "PCM_U8", 44100, 2),
    )  # fmt: skip
    for name, subtype, rate, channels in kinds:
        samples = 0.5 * rng.uniform(-1, 1, (int(0.4 * rate) + rng.integers(50), channels))
        soundfile.write(root / name, samples, rate, subtype=subtype)
    soundfile.write(root / "loud.wav", np.array([[1.0], [-1.0]] * 9000), 44100, subtype="PCM_16")
    return root


@pytest.fixture
def made(audio, tmp_path):
    found = folder.scan(str(audio), OPTIONS, 0.2)
    shard_writer.write(found, tmp_path / "shards", **SETTINGS)
    return tmp_path / "shards"


def test_shards_give_the_crops_of_their_folder_to_the_bit(audio, made, micro_config):
    whole = folder.scan(str(audio), OPTIONS, 0.2)
    found = sources.open_root(str(made), "auto", OPTIONS, micro_config.data)
    assert found.fingerprint == whole.fingerprint
    health = Health(len(whole.train))
    for kind, side, changes in ((RandomCrops, "train", {"seed": 3}), (FixedCrops, "validation", {"count": 3})):
        ours, theirs = (kind(format=CROP, tracks=getattr(c, side), health=health, **changes) for c in (found, whole))
        for i in range(40):
            np.testing.assert_array_equal(ours[i], theirs[i])


def test_shards_keep_the_speakers(tmp_path, micro_config):
    root = tmp_path / "surround"
    root.mkdir()
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, (20000, 6))
    soundfile.write(root / "vorbis.ogg", noise, 44100)
    soundfile.write(root / "wave.wav", noise, 44100)
    whole = folder.scan(str(root), OPTIONS, 0.5)
    shard_writer.write(whole, tmp_path / "shards", **SETTINGS)
    found = sources.open_root(str(tmp_path / "shards"), "auto", OPTIONS, micro_config.data)
    for ours, theirs in zip(found.train + found.validation, whole.train + whole.validation, strict=True):
        assert ours.audio.speakers == theirs.audio.speakers
        np.testing.assert_array_equal(*(read_window(each.audio, 0.5, 5000, 44100, 2) for each in (ours, theirs)))
    index = json.loads((tmp_path / "shards" / "index.json").read_text())
    assert {track["key"]: "speakers" in track for track in index["tracks"]} == {"vorbis.ogg": True, "wave.wav": False}


def test_records_are_as_small_as_exactness_allows(made):
    listing = json.loads((made / "index.json").read_text())
    assert len(listing["shards"]) > 2
    kinds = {}
    for track in listing["tracks"]:
        name = listing["shards"][track["shard"]][0]
        shard = shards.Shard(made / f"{name}.arrayrecord", made / f"{name}.json")
        (record,) = shard.read(track["first_record"], 1)
        with soundfile.SoundFile(io.BytesIO(record)) as f:
            kinds[track["key"]] = f"{f.format} {f.subtype}"
    assert kinds["a.wav"] == kinds["d.flac"] == kinds["h.wav"] == kinds["f.wav"] == "FLAC PCM_16"
    assert kinds["b.wav"] == "FLAC PCM_24"
    assert kinds["c.wav"] == kinds["e.ogg"] == kinds["g.wav"] == "AU FLOAT"


def test_any_reader_of_array_records_takes_them(made):
    array_record_module = pytest.importorskip("array_record.python.array_record_module")
    for path in made.glob("*.arrayrecord"):
        reader = array_record_module.ArrayRecordReader(str(path))
        records = reader.read_all()
        shard = shards.Shard(path, path.with_suffix(".json"))
        assert [record[4:] for record in records] == shard.read(0, len(records))


def test_a_stopped_making_goes_on_to_the_same_files(audio, made, tmp_path, monkeypatch):
    found = folder.scan(str(audio), OPTIONS, 0.2)
    real, calls, lock = shards.encode_record, [], threading.Lock()

    def stop(*args):
        with lock:
            calls.append(1)
            if len(calls) == 30:
                raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(shards, "encode_record", stop)
    with pytest.raises(KeyboardInterrupt):
        shard_writer.write(found, tmp_path / "cut", **SETTINGS)
    assert not (tmp_path / "cut" / "index.json").exists()
    with pytest.raises(DataError, match="contains no audio file"):  # what is unfinished is no data set
        folder.scan(str(tmp_path / "cut"), OPTIONS, 0.2)
    monkeypatch.setattr(shards, "encode_record", real)
    shard_writer.write(found, tmp_path / "cut", **SETTINGS)
    names = sorted(path.name for path in made.iterdir())
    assert sorted(path.name for path in (tmp_path / "cut").iterdir()) == names
    for name in names:
        assert (tmp_path / "cut" / name).read_bytes() == (made / name).read_bytes()


def test_a_folder_of_other_shards_is_refused_and_a_bad_file_left_out(audio, made, tmp_path):
    found = folder.scan(str(audio), OPTIONS, 0.2)
    with pytest.raises(DataError, match="record_seconds: 0.05 there, 1.0 now"):
        shard_writer.write(found, made, **SETTINGS | {"record_seconds": 1.0})
    (audio / "a.wav").unlink()
    said = []
    shard_writer.write(found, tmp_path / "without", **SETTINGS | {"say": said.append})
    assert len(said) == 1
    assert said[0].startswith("left out a.wav: ")
    kept = shards.scan(str(tmp_path / "without"), OPTIONS)
    assert len(kept.train) + len(kept.validation) == len(found.train) + len(found.validation) - 1


def test_damage_is_noticed_and_named(made):
    first = sorted(made.glob("*.arrayrecord"))[0]
    content = bytearray(first.read_bytes())
    for at in range(1000, len(content), 1000):
        content[at] ^= 1
    first.write_bytes(content)
    found = shards.scan(str(made), OPTIONS)
    damaged = [t for t in (*found.train, *found.validation) if t.audio.shard.place == first]
    assert damaged
    for track in damaged:
        with pytest.raises(DataError, match=rf"{first.name}.*is damaged \(checksum\)"):
            track.audio.read(0, track.audio.frames)
    first.unlink()
    ((name, reason),) = shards.scan(str(made), OPTIONS).skipped
    assert name == str(first)
    assert "is missing" in reason
    (made / "index.json").write_text('{"format": "audiovae_jax.shards", "version": 1}')
    with pytest.raises(DataError, match="index.json is damaged"):
        shards.scan(str(made), OPTIONS)
    (made / "index.json").write_text('{"format": "audiovae_jax.shards", "version": 99}')
    with pytest.raises(DataError, match="newer version"):
        shards.scan(str(made), OPTIONS)


def test_what_is_left_out_of_shards_is_said_and_makes_another_data_set(audio, made):
    whole = folder.scan(str(audio), OPTIONS, 0.2)
    short = dataclasses.replace(OPTIONS, min_seconds=0.40003)
    strict = shards.scan(str(made), short)
    assert strict.fingerprint != whole.fingerprint
    assert 0 < len(strict.train) + len(strict.validation) < 9
    assert all("shorter than data.min_seconds=0.40003" in reason for _, reason in strict.skipped)
    sorted(made.glob("*.arrayrecord"))[0].unlink()
    assert shards.scan(str(made), OPTIONS).fingerprint != whole.fingerprint


def test_the_lowest_sample_is_flacs_too():
    audio = np.array([[-1.0], [0.5]] * 2000, np.float32)
    assert shards.encode_record(audio, 44100)[4:8] == b"fLaC"
    with soundfile.SoundFile(io.BytesIO(shards.encode_record(audio, 44100)[4:])) as f:
        np.testing.assert_array_equal(f.read(dtype="float32", always_2d=True), audio)
    assert shards.encode_record(-audio, 44100)[4:8] == b".snd"  # 1.0 is above the highest


def test_killed_writers_leave_nothing_once_all_is_there(audio, tmp_path):
    target = tmp_path / "shards"
    target.mkdir()
    (target / ".shard-00000.4194305.tmp.arrayrecord").write_bytes(b"half")
    shard_writer.write(folder.scan(str(audio), OPTIONS, 0.2), target, **SETTINGS)
    assert not [path.name for path in target.iterdir() if path.name.startswith(".")]


def test_shards_are_not_written_into_what_they_are_made_of(audio, tmp_path):
    (tmp_path / "link").symlink_to(audio)
    with pytest.raises(DataError, match="link is both input and output"):
        sharding.require_apart(str(audio), tmp_path / "link")
    sharding.require_apart(str(audio), audio / "shards")


@pytest.mark.parametrize("form", ["tar", "folder", "pattern"])
def test_tars_give_the_crops_of_the_folder_that_was_packed(audio, tmp_path, micro_config, form):
    packed = tmp_path / "tars"
    packed.mkdir()
    files = sorted(audio.iterdir())
    for i in range(1 if form == "tar" else 3):
        with tarfile.open(packed / f"part-{i:02d}.tar", "w") as archive:
            for path in files if form == "tar" else files[i::3]:
                archive.add(path, path.name)
                text = tarfile.TarInfo(f"{path.stem}.json")
                archive.addfile(text, io.BytesIO(b""))
    root = {"tar": packed / "part-00.tar", "folder": packed, "pattern": packed / "part-{00..02}.tar"}[form]
    found = sources.open_root(str(root), "auto", OPTIONS, micro_config.data)
    whole = folder.scan(str(audio), OPTIONS, micro_config.data.validation_fraction)
    assert found.fingerprint == whole.fingerprint
    ours, theirs = (
        RandomCrops(format=CROP, tracks=each.train, seed=3, health=Health(len(each.train))) for each in (found, whole)
    )
    for i in range(20):
        np.testing.assert_array_equal(ours[i], theirs[i])


def test_a_broken_tar_is_skipped(audio, tmp_path, micro_config):
    packed = tmp_path / "tars"
    packed.mkdir()
    for i in range(2):
        with tarfile.open(packed / f"{i}.tar", "w") as archive:
            archive.add(audio / "a.wav", "a.wav")
    (packed / "2.tar").write_bytes(b"not a tar at all" * 100)
    found = sources.open_root(str(packed), "webdataset", OPTIONS, micro_config.data)
    ((name, reason),) = found.skipped
    assert name.endswith("2.tar")
    assert "not a tar" in reason
    with pytest.raises(DataError, match="there is no such file"):
        sources.open_root(str(packed / "{7..9}.tar"), "auto", OPTIONS, micro_config.data)
