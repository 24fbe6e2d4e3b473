"""A data set's latents in shards: exact, independent of how they were written, and read by index."""

import dataclasses
import json
import os
import random
import re
import shutil
import subprocess
import time
from pathlib import Path

import command_line
import numpy as np
import pytest
import safetensors.numpy
import soundfile
from conftest import SMALL_MODEL, random_variables

from audiovae_jax import AudioVAE, Codec, save_model
from audiovae_jax.data.audio.audio_file import AudioFile
from audiovae_jax.data.sets import folder, probing, shard_writer, sharding, shards
from audiovae_jax.data.sets.catalog import Excerpt, Track
from audiovae_jax.errors import DataError
from audiovae_jax.inference import latent_records, latent_writer, track_stream
from audiovae_jax.inference.latent_dataset import LatentCrops, LatentDataset, LatentTrack
from audiovae_jax.inference.latent_writer import LatentFormat, track_key

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "audiovae_jax" / "inference" / "README.md"
SMALL = {"record_frames": 100, "shard_bytes": 20_000}  # several shards, several records a track


def _quiet(_):
    pass


def _codec(**changes):
    model = AudioVAE(**{**SMALL_MODEL, **changes})
    return Codec(model, random_variables(model), sample_rate=8000, chunk_length=800)


@pytest.fixture(scope="module")
def codec():
    return _codec()


@pytest.fixture(scope="module")
def music(tmp_path_factory):
    """Six tracks of several lengths, rates and channels. One file is damaged before its end."""
    root = tmp_path_factory.mktemp("music")
    (root / "deeper").mkdir()
    files = [("a.wav", 5003, 8000, 2), ("b.flac", 3001, 8000, 1), ("deeper/c.wav", 7000, 11025, 2)]
    files += [("d.wav", 801, 8000, 2), ("e.wav", 2400, 8000, 2)]
    for i, (name, length, rate, channels) in enumerate(files):
        audio = 0.2 * np.random.default_rng(i).standard_normal((length, channels))
        soundfile.write(root / name, audio, rate, "FLOAT" if name.endswith("wav") else None)
    bad = np.zeros((20000, 2), np.float32)
    bad[0], bad[7000] = 0.5, np.nan  # where probing the file's beginning, middle and end does not find it
    soundfile.write(root / "bad.wav", bad, 8000, "FLOAT")
    return root


@pytest.fixture(scope="module")
def catalog(music):
    return folder.scan(str(music), probing.Options(channels=2, num_threads=1), 0.3)


@pytest.fixture(scope="module")
def encoded(codec, catalog, tmp_path_factory):
    """A folder written without interruption; read-only."""
    target = tmp_path_factory.mktemp("encoded") / "latents"
    assert latent_writer.write(codec, catalog, target, LatentFormat(**SMALL), say=_quiet)
    return target


def _contents(root):
    return {path.name: path.read_bytes() for path in sorted(root.iterdir())}


def test_decoding_a_track_is_encoding_and_decoding_its_file(codec, music, encoded):
    """Bit-identical: records contain the result of a single pass of the codec, however they are cut."""
    dataset = LatentDataset(encoded)
    assert len(dataset) == 5
    for name in ("a.wav", "b.flac", "deeper/c.wav", "d.wav", "e.wav"):
        direct = codec.encode(music / name)
        stored = dataset.latents(name)
        np.testing.assert_array_equal(stored.z, direct.z)
        reconstruction = codec.decode(stored)
        with soundfile.SoundFile(music / name) as file:
            assert reconstruction.shape == (file.frames, file.channels)
        np.testing.assert_array_equal(reconstruction, codec.decode(direct))


def test_a_posterior_is_sampled_as_the_codec_samples(codec, music, encoded):
    dataset, key = LatentDataset(encoded), track_key(3, "a.wav")
    direct = codec.encode(music / "a.wav", key=key)
    np.testing.assert_allclose(dataset.latents("a.wav", key=key).z, direct.z, atol=2e-6)
    assert np.abs(direct.z - dataset.read("a.wav")).max() > 0.1


def test_uncalibrated_moments_come_back(codec, music, encoded):
    dataset = LatentDataset(encoded)
    std = np.float32(dataset.settings["latent_std"]) + np.float32(1e-8)
    blocks = list(codec.stream(track_stream.open_track(_audio(music / "a.wav"))).posteriors)
    raw = np.concatenate([posterior.mean for posterior in blocks])
    mean, logvar = dataset.posterior("a.wav")
    np.testing.assert_allclose(mean * std + np.float32(dataset.settings["latent_mean"]), raw.swapaxes(0, 1), atol=1e-5)
    direct = np.concatenate([posterior.logvar for posterior in blocks])
    np.testing.assert_allclose(logvar + 2 * np.log(std), direct.swapaxes(0, 1), atol=1e-5)
    assert mean.shape == logvar.shape == (1, 626, 3)


def _audio(path):
    info = soundfile.info(path)
    return AudioFile(path, info.frames, info.samplerate, info.channels)


def test_samples_are_the_codecs_and_follow_the_seed(codec, catalog, music, tmp_path):
    form = LatentFormat("samples", seed=5, **SMALL)
    latent_writer.write(codec, catalog, tmp_path / "one", form, say=_quiet)
    dataset = LatentDataset(tmp_path / "one")
    direct = codec.encode(music / "a.wav", key=track_key(5, "a.wav"))
    np.testing.assert_array_equal(dataset.latents("a.wav").z, direct.z)
    with pytest.raises(DataError, match="contains samples, but no posterior"):
        dataset.posterior("a.wav")
    with pytest.raises(DataError, match="seed: 5 there, 6 now differ"):
        latent_writer.write(codec, catalog, tmp_path / "one", LatentFormat("samples", seed=6, **SMALL), say=_quiet)


@pytest.mark.parametrize(("dtype", "share"), [("float16", 2**-11), ("bfloat16", 2**-8)])
def test_halves_are_the_rounded_latents(codec, catalog, encoded, tmp_path, dtype, share):
    latent_writer.write(codec, catalog, tmp_path / "half", LatentFormat(storage_dtype=dtype, **SMALL), say=_quiet)
    exact, half = LatentDataset(encoded).posterior("a.wav"), LatentDataset(tmp_path / "half").posterior("a.wav")
    for values, rounded in zip(exact, half, strict=True):
        np.testing.assert_array_equal(rounded, values.astype(latent_records.DTYPES[dtype]).astype(np.float32))
        np.testing.assert_allclose(rounded, values, rtol=share, atol=1e-6)


def test_a_stretch_is_that_of_the_whole(encoded):
    dataset = LatentDataset(encoded)
    whole = dataset.read("a.wav")
    for first, frames in ((0, 1), (99, 2), (100, 100), (37, 500), (625, 1)):
        np.testing.assert_array_equal(dataset.read("a.wav", first, frames), whole[:, first : first + frames])
    for first, frames in ((0, 627), (626, 1), (-1, 2), (0, 0)):
        with pytest.raises(DataError, match="a.wav has 626 frames"):
            dataset.read("a.wav", first, frames)
    with pytest.raises(DataError, match="has no track 'nothing'"):
        dataset.read("nothing")


def test_any_reader_of_both_formats_takes_a_record(encoded):
    from array_record.python import array_record_module

    reader = array_record_module.ArrayRecordReader(str(encoded / "shard-00000.arrayrecord"))
    tensors = safetensors.numpy.load(reader.read()[4:])
    key = json.loads((encoded / "shard-00000.json").read_text())["tracks"][0]["key"]
    mean, logvar = LatentDataset(encoded).posterior(key, 0, 100)
    np.testing.assert_array_equal(tensors["mean"], mean)
    np.testing.assert_array_equal(tensors["logvar"], logvar)


def test_an_unreadable_track_is_left_out_and_reported(codec, catalog, encoded, tmp_path):
    said = []
    latent_writer.write(codec, catalog, tmp_path / "again", LatentFormat(**SMALL), num_threads=1, say=said.append)
    (left_out,) = [line for line in said if "left out" in line]
    assert "bad.wav: contains NaN or infinite samples" in left_out
    assert "5 tracks, 0.00 hours" in said[-1]
    assert "times real time" in said[-1]
    assert _contents(tmp_path / "again") == _contents(encoded)  # for any number of threads


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes, which hang as a dead mount does")
def test_a_file_that_hangs_is_left_out(codec, music, tmp_path):
    for name in ("a.wav", "b.flac"):
        shutil.copy(music / name, tmp_path / name)
    catalog = folder.scan(str(tmp_path), probing.Options(channels=2), 0.3)
    (tmp_path / "a.wav").unlink()
    os.mkfifo(tmp_path / "a.wav")
    said = []
    try:
        latent_writer.write(codec, catalog, tmp_path / "out", LatentFormat(**SMALL), read_timeout=0.3, say=said.append)
    finally:  # releases the hanging readers
        os.close(os.open(tmp_path / "a.wav", os.O_RDWR | os.O_NONBLOCK))
    assert "a.wav: reading did not return within data.read_timeout=0.3 s" in said[0]
    assert said[-1].startswith("1 tracks")


def test_latents_behind_a_url_are_those_of_the_folder(encoded, bucket):
    bucket.upload(encoded)
    here, there = LatentDataset(encoded), LatentDataset(str(bucket))
    options = {"num_steps": 3, "seed": 3}
    np.testing.assert_array_equal(list(there.batches(4, 50, **options)), list(here.batches(4, 50, **options)))
    for track in here.tracks:
        np.testing.assert_array_equal(there.read(track.key), here.read(track.key))


class _KilledError(Exception):
    pass


@pytest.mark.parametrize("after", [1, 8, 14])
def test_what_was_stopped_goes_on_to_the_same_bytes(codec, catalog, encoded, tmp_path, monkeypatch, after):
    target, encode, count = tmp_path / "latents", latent_records.encode, 0

    def failing(*args, **options):
        nonlocal count
        count += 1
        if count > after:
            raise _KilledError
        return encode(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(latent_records, "encode", failing)
        with pytest.raises(_KilledError):
            latent_writer.write(codec, catalog, target, LatentFormat(**SMALL), num_threads=1, say=_quiet)
    assert not (target / "index.json").exists()
    with pytest.raises(DataError, match=r"contains no index.json; encode_dataset writes it"):
        LatentDataset(target)
    (target / ".shard-00001.1.tmp.arrayrecord").write_bytes(b"left by a killed run")
    latent_writer.write(codec, catalog, target, LatentFormat(**SMALL), num_threads=1, say=_quiet)
    assert _contents(target) == _contents(encoded)


def test_what_is_there_is_not_made_again(codec, catalog, encoded, tmp_path, monkeypatch):
    target = tmp_path / "latents"
    shutil.copytree(encoded, target)
    monkeypatch.setattr(Codec, "stream", lambda *_, **__: pytest.fail("it encoded"))
    assert latent_writer.write(codec, catalog, target, LatentFormat(**SMALL), say=_quiet)
    assert _contents(target) == _contents(encoded)


def test_hosts_make_the_same_shards_in_any_order(codec, catalog, encoded, tmp_path):
    target, said = tmp_path / "latents", []
    for host in (2, 0, 1):
        done = latent_writer.write(
            codec, catalog, target, LatentFormat(**SMALL), host_index=host, host_count=3, say=said.append
        )
        assert done == (host == 1) == (target / "index.json").exists()
    assert "host 2 of 3 is done" in said[0] + said[1]
    assert _contents(target) == _contents(encoded)
    with pytest.raises(DataError, match="host_index=3 must be a whole number from 0 to 2"):
        latent_writer.write(codec, catalog, target, host_index=3, host_count=3)


def test_a_folder_of_something_else_is_refused_with_what_differs(codec, catalog, encoded):
    other = Codec(codec.model.clone(), random_variables(codec.model, 1), sample_rate=8000)
    with pytest.raises(DataError, match=f"model: '{codec.fingerprint}' there, '{other.fingerprint}' now"):
        latent_writer.write(other, catalog, encoded, LatentFormat(**SMALL))
    with pytest.raises(DataError, match="record_frames: 100 there, 256 now"):
        latent_writer.write(codec, catalog, encoded, LatentFormat(shard_bytes=20_000))
    with pytest.raises(DataError, match="contains no audio: its index.json is of audiovae_jax.latents"):
        shards.scan(str(encoded), probing.Options(channels=2))


def test_a_full_disk_is_an_error_and_leaves_intact_files(codec, catalog, encoded, tmp_path, full_disk):
    target = tmp_path / "latents"
    with full_disk(8000), pytest.raises(DataError, match=r"too large.*run the same command to resume"):
        latent_writer.write(codec, catalog, target, LatentFormat(**SMALL), num_threads=1, say=_quiet)
    assert not list(target.glob("*.arrayrecord"))
    latent_writer.write(codec, catalog, target, LatentFormat(**SMALL), say=_quiet)
    assert _contents(target) == _contents(encoded)


def test_damage_is_found_and_named(encoded, tmp_path):
    target = tmp_path / "latents"
    shutil.copytree(encoded, target)
    track = LatentDataset(target).tracks[0]
    path = target / f"shard-{track.shard:05d}.arrayrecord"
    content = bytearray(path.read_bytes())
    listing = json.loads(path.with_suffix(".json").read_text())
    content[listing["records"][track.first_record][0] + 24 + 1000] ^= 1  # within its first 64 KiB: one block header
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"{track.key}: .*record 0 is damaged"):
        LatentDataset(target).read(track)
    path.write_bytes(content[:-1])
    with pytest.raises(DataError, match="is missing, or its size is not"):
        LatentDataset(target)
    (target / "index.json").write_text("{}")
    with pytest.raises(DataError, match="index.json is damaged"):
        LatentDataset(target)


def test_a_mono_models_channels_are_lanes(music, tmp_path):
    codec = _codec(in_channels=1)
    catalog = folder.scan(str(music), probing.Options(channels=1, num_threads=1), 0.3)
    latent_writer.write(codec, catalog, tmp_path / "latents", LatentFormat(**SMALL), say=_quiet)
    dataset = LatentDataset(tmp_path / "latents")
    stored = dataset.latents("a.wav")
    assert stored.z.shape == (2, 626, 3)
    np.testing.assert_array_equal(stored.z, codec.encode(music / "a.wav").z)
    assert codec.decode(stored).shape == (5003, 2)
    lanes = {dataset.crops(10).where(i)[2] for i in range(50)}
    assert lanes == {0, 1}


def test_excerpts_and_audio_shards_are_encoded_as_files_are(codec, catalog, music, tmp_path):
    audio = soundfile.read(music / "a.wav", dtype="float32")[0]
    part = track_stream.open_track(Excerpt(Excerpt(_audio(music / "a.wav"), 500, 4000), 100, 3000))
    np.testing.assert_array_equal(np.concatenate(list(part.blocks())), audio[600:3600])
    shard_writer.write(catalog, tmp_path / "shards", record_seconds=0.1, shard_bytes=10**6, num_threads=1, say=_quiet)
    found = shards.scan(str(tmp_path / "shards"), probing.Options(channels=2))
    latent_writer.write(codec, found, tmp_path / "latents", LatentFormat(**SMALL), say=_quiet)
    stored = LatentDataset(tmp_path / "latents").latents("a.wav")
    np.testing.assert_array_equal(stored.z, codec.encode(music / "a.wav").z)


def test_batches_are_a_function_of_seed_step_and_row(encoded):
    dataset = LatentDataset(encoded)
    options = {"seed": 7, "num_steps": 4, "num_threads": 2}
    batches = list(dataset.batches(4, 50, **options))
    assert [batch.shape for batch in batches] == [(4, 50, 3)] * 4
    assert batches[0].dtype == np.float32
    np.testing.assert_array_equal(list(dataset.batches(4, 50, start_step=2, **options)), batches[2:])
    hosts = [list(dataset.batches(4, 50, process_index=i, process_count=2, **options)) for i in (0, 1)]
    np.testing.assert_array_equal(np.concatenate(hosts, axis=1), batches)
    assert not np.array_equal(next(dataset.batches(4, 50, num_steps=1, seed=8)), batches[0])
    means = list(dataset.batches(4, 50, sample=False, **options))
    crops = dataset.crops(50, seed=7, sample=False)
    for index in (0, 5, 15):
        track, first, lane = crops.where(index)
        np.testing.assert_array_equal(means[index // 4][index % 4], dataset.read(track, first, 50)[lane])
        mean, logvar = (array[lane] for array in dataset.posterior(track, first, 50))
        noise = (batches[index // 4][index % 4] - mean) / np.exp(logvar / 2)
        assert 0.6 < noise.std() < 1.4
    with pytest.raises(DataError, match="must be a positive multiple of the 3 hosts"):
        dataset.batches(4, 50, num_steps=1, process_count=3)


def _frequencies(track_frames, crop_frames, **options):
    """Return how often each frame of a track is drawn, relative to a frame in its middle."""
    track = LatentTrack("a", ("train",), track_frames, 1, 8000, track_frames * 8, 2, 1.0, 0, 0)
    crops, counts = LatentCrops(None, [track], crop_frames, seed=0, **options), np.zeros(track_frames)
    for i in range(20_000):
        _, first, _ = crops.where(i)
        assert 0 <= first <= track_frames - crop_frames
        counts[first : first + crop_frames] += 1
    return counts / counts[track_frames // 2 - 5 : track_frames // 2 + 5].mean()


@pytest.mark.slow
def test_the_ends_of_a_track_are_rare_unless_they_are_covered():
    plain, covered = _frequencies(100, 20), _frequencies(100, 20, cover_ends=True)
    np.testing.assert_allclose(plain[[0, -1]], 1 / 20, rtol=0.2)
    np.testing.assert_allclose(plain[20:80], 1.0, rtol=0.1)
    np.testing.assert_allclose(covered[[0, -1]], 1.0, rtol=0.1)
    np.testing.assert_allclose(covered[20:80], 1.0, rtol=0.1)
    assert covered.min() > 0.9
    assert covered.max() < 2.1
    assert _frequencies(30, 20, cover_ends=True).min() > 1 / 3


def test_covering_the_ends_changes_where_crops_begin_and_nothing_else(encoded):
    dataset = LatentDataset(encoded)
    given = {"num_steps": 5, "seed": 1, "sample": False}
    batches = np.concatenate(list(dataset.batches(8, 50, cover_ends=True, **given)))
    crops = dataset.crops(50, seed=1, sample=False, cover_ends=True)
    starts = []
    for i, batch in enumerate(batches):
        track, first, lane = crops.where(i)
        np.testing.assert_array_equal(batch, dataset.read(track, first, 50)[lane])
        starts.append(first)
    assert 0 in starts


def test_each_side_gives_its_own_tracks_each_as_often_as_it_is_long(encoded, catalog):
    dataset = LatentDataset(encoded)
    for side, tracks in (("train", catalog.train), ("validation", catalog.validation)):
        keys = [track.key for track in tracks if track.key != "bad.wav"]
        assert [track.key for track in dataset.side(side)] == keys
        crops = dataset.crops(50, side=side)
        drawn = [crops.where(i)[0].key for i in range(2000)]
        assert set(drawn) == set(keys)
        frames = {track.key: track.frames for track in dataset.side(side)}
        for key in keys:  # 5 standard deviations of 2000 draws
            assert abs(drawn.count(key) / 2000 - frames[key] / sum(frames.values())) < 0.06
    with pytest.raises(DataError, match=r"no track has 5000 frames: the longest of \d tracks has \d+"):
        dataset.crops(5000)
    with pytest.raises(DataError, match="side='test' must be one of train, validation"):
        dataset.side("test")


def test_no_track_that_can_be_encoded_is_an_error(codec, catalog, tmp_path):
    bad = next(track for track in (*catalog.train, *catalog.validation) if track.key == "bad.wav")
    alone = dataclasses.replace(catalog, train=(bad,), validation=(bad,))
    with pytest.raises(DataError, match=r"no track could be encoded: .*bad.wav: contains NaN"):
        latent_writer.write(codec, alone, tmp_path / "latents", say=_quiet)


def test_long_records_are_found_past_any_gap(tmp_path):
    path = tmp_path / "shard.arrayrecord"
    from array_record.python import array_record_module

    records = [os.urandom(size) for size in (10, 200_000, 65_536, 1, 70_000)]
    writer = array_record_module.ArrayRecordWriter(str(path), shards.WRITER_OPTIONS)
    for record in records:
        writer.write(record)
    writer.close()
    stream = shards.without_headers(path.read_bytes())
    found = sharding.positions(path, [(len(record), record[:64]) for record in records])
    assert [stream[at : at + size] for at, size in found] == records
    with pytest.raises(DataError, match="was not written as expected"):
        sharding.positions(path, [(64, os.urandom(64))])


def test_tracks_of_a_group_follow_each_other():
    class _Audio:
        def __init__(self, frames):
            self.frames = frames

    tracks = [Track(str(i), _Audio(size)) for i, size in enumerate((3, 3, 5, 9, 1, 1))]
    groups = sharding.groups(tracks, lambda track: track.audio.frames, 6)
    assert ["".join(track.key for track in group) for group in groups] == ["01", "2", "3", "45"]


def test_the_readmes_example_runs(encoded, codec, tmp_path, monkeypatch):
    model = AudioVAE(**SMALL_MODEL)
    save_model(model, random_variables(model), tmp_path / "runs" / "tiny", sample_rate=8000)
    shutil.copytree(encoded, tmp_path / "latents")
    monkeypatch.chdir(tmp_path)
    (section,) = re.findall(r"^# Train on latents\n(.*?)(?=^# |\Z)", README.read_text(), flags=re.MULTILINE | re.DOTALL)
    (block,) = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    namespace = {}
    exec(block.replace("num_steps=100_000", "num_steps=2").replace("frames=128", "frames=64"), namespace)
    assert namespace["z"].shape == (8, 64, 3)
    assert namespace["audio"].shape[1] == 2


@pytest.mark.slow
def test_killed_at_any_moment_and_run_again_it_makes_the_same(music, tmp_path):
    """With SIGKILL, from outside, at random moments of the whole run."""
    model = AudioVAE(**{**SMALL_MODEL, "latent_dim": 64})
    save_model(model, random_variables(model), tmp_path / "m", sample_rate=8000)
    many = tmp_path / "many"
    for i in range(8):
        shutil.copytree(music, many / str(i))
    environment = {**command_line.environment(), "XDG_CACHE_HOME": str(tmp_path / "cache")}

    def begun(target):
        """Start the command, and wait until it writes shards."""
        started = command_line.line("encode_dataset", "m", many, target)
        started += ["--record_frames=20", "--shard_megabytes=1", "--chunk_length=400"]
        with open(tmp_path / "log", "w") as log:
            process = subprocess.Popen(started, cwd=tmp_path, env=environment, stdout=log, stderr=subprocess.STDOUT)
        while process.poll() is None and not (tmp_path / target / "unfinished.json").exists():
            time.sleep(0.01)
        return process

    for target in ("whole", "again"):
        assert begun(target).wait() == 0, (tmp_path / "log").read_text()
    whole = _contents(tmp_path / "whole")
    count = sum(name.endswith(".arrayrecord") for name in whole)
    moments, shards_there = random.Random(0), []

    def there():
        return len(list((tmp_path / "killed").glob("shard-*.json")))

    for share in (0.0, 0.3, 0.6):  # counted in shards instead of seconds, so that the machine's speed does not matter
        process = begun("killed")
        least = int(count * (share + moments.uniform(0.0, 0.2)))
        while process.poll() is None and there() < least:
            time.sleep(0.002)
        time.sleep(moments.uniform(0.0, 0.1))
        process.kill()
        assert process.wait() == -9, (tmp_path / "log").read_text()
        shards_there.append(there())
    process = begun("killed")
    assert process.wait() == 0, (tmp_path / "log").read_text()
    print(f"killed with {shards_there} of {count} shards there")
    assert shards_there[0] < count
    assert _contents(tmp_path / "killed") == _contents(tmp_path / "again") == whole
