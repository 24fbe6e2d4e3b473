import contextlib
import io
import json
import shutil
import tarfile
import threading
import time
import warnings

import numpy as np
import pytest
import s3
import soundfile

from audiovae_jax.data.audio import audio_file, remote, synthesis
from audiovae_jax.data.audio.block_cache import BlockCache
from audiovae_jax.data.feeding import pipeline
from audiovae_jax.data.sets import shard_writer
from audiovae_jax.errors import DataError
from configs import base

RATE = 44100


@pytest.fixture(scope="module")
def music(tmp_path_factory):
    """A folder of every format, with names and folders whose order and spelling are a trap."""
    folder = tmp_path_factory.mktemp("music")
    names = ("a/x.wav", "a-b/x.flac", "a b/ü #1?%20.ogg", "a/y.mp3", "z.wav", "a/.hidden/deep.flac")
    for i, name in enumerate(names):
        rate = 22050 if name == "z.wav" else RATE
        audio = synthesis.music(np.random.default_rng(i), 4 * rate, rate, 1 + i % 2)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / name, 0.5 * audio, rate)
    (folder / "notes.txt").write_text("no audio")
    return folder


@pytest.fixture(scope="module")
def long_music(tmp_path_factory):
    """Four files of 24 s: two wav, two flac."""
    folder = tmp_path_factory.mktemp("long")
    for i, name in enumerate(("a.wav", "b.wav", "c.flac", "d.flac")):
        soundfile.write(folder / name, 0.5 * synthesis.music(np.random.default_rng(i), 24 * RATE, RATE, 2), RATE)
    return folder


@pytest.fixture(scope="module")
def everything(tmp_path_factory, music, long_music):
    """A folder of all that is uploaded: the audio, a manifest, shards and tars of it."""
    folder = tmp_path_factory.mktemp("everything")
    for name, source in (("music", music), ("long", long_music)):
        shutil.copytree(source, folder / name)
    lines = [{"path": "music/a/x.wav", "start": 1.0, "duration": 2.0}, {"path": "long/c.flac"}, {"path": "gone.wav"}]
    (folder / "list.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = _open(str(long_music)).catalog
    shard_writer.write(found, folder / "shards", record_seconds=2.0, shard_bytes=1 << 22, num_threads=1, say=str)
    (folder / "tars").mkdir()
    for i, members in enumerate((("a/x.wav", "a-b/x.flac", "a/y.mp3"), ("z.wav", "a b/ü #1?%20.ogg"))):
        with tarfile.open(folder / "tars" / f"part-{i}.tar", "w") as archive:
            for name in members:
                archive.add(music / name, name)
    return folder


@pytest.fixture(scope="module")
def server(everything):
    s3.require_packages()
    server = s3.Server()
    server.upload(everything, "bucket")
    yield server
    server.kill()


@pytest.fixture
def proxy(server, monkeypatch):
    """A line to the server, which s3:// takes."""
    proxy = s3.Proxy(server.port)
    s3.use(monkeypatch, proxy.port)
    yield proxy
    proxy.cut()


def _config(root, **changes):
    config = base.get_config().data
    config.crop_length, config.index, config.retry_seconds, config.num_threads = 8192, False, 30.0, 4
    config.max_bad_share = 1.0
    config.update({"root": root, **changes})
    return config


def _open(root, warn=warnings.warn, **changes):
    return pipeline.open_data(_config(root, **changes), batch_size=4, seed=3, warn=warn)


def _access(data):
    place = data.catalog.train[0].audio
    place = getattr(place, "shard", place)
    place = getattr(place, "path", None) or place.place
    return getattr(place, "archive", place).access


def _assert_same(one, other, count=24):
    assert [track.key for track in one.catalog.train] == [track.key for track in other.catalog.train]
    assert one.fingerprint == other.fingerprint
    for i in range(count):
        np.testing.assert_array_equal(one.train[i], other.train[i], err_msg=f"crop {i}")
    for i in range(3):
        np.testing.assert_array_equal(one.validation[i], other.validation[i])


@pytest.mark.slow
@pytest.mark.parametrize("root", ["music", "shards", "tars", "tars/part-{0..1}.tar", "list.jsonl"])
def test_the_same_crops_as_from_this_machines_disk(proxy, everything, root):
    ours, theirs = _open(f"s3://bucket/{root}"), _open(str(everything / root))
    _assert_same(ours, theirs)
    assert ours.health.bad_files == theirs.health.bad_files == (root == "list.jsonl")
    assert len(theirs.catalog.train) + len(theirs.catalog.validation) == ({"shards": 4, "list.jsonl": 2}.get(root, 5))


def test_what_a_root_is_and_holds_is_one_listing(proxy, monkeypatch):
    listed = []
    actual = remote.Access.listing

    def listing(access, url, ask):
        return actual(access, url, lambda: (listed.append(url), ask())[1])

    monkeypatch.setattr(remote.Access, "listing", listing)
    for root in ("s3://bucket/music", "s3://bucket/shards", "s3://bucket/tars"):
        listed.clear()
        _open(root)
        assert listed == [root]


def test_a_list_on_this_machine_of_files_elsewhere(proxy, everything, tmp_path):
    lines = [json.dumps({"path": f"s3://bucket/long/{name}"}) + "\n" for name in ("a.wav", "b.wav", "gone.wav")]
    (tmp_path / "list.jsonl").write_text("".join(lines))
    data = _open(str(tmp_path / "list.jsonl"))
    (skipped,) = data.catalog.skipped
    assert skipped[0] == "s3://bucket/long/gone.wav"
    assert "no such file" in skipped[1]
    assert data.train[0].any()


def test_a_file_url_is_a_path(music):
    _assert_same(_open(f"file://{music}"), _open(str(music)), count=4)


@pytest.mark.parametrize(
    ("root", "names", "most_bytes", "most_requests"),
    [
        ("long", "ab", 1.35, 1.0),  # wav: whole blocks
        ("long", "cd", 2.5, 2.5),  # flac: its decoder looks for the place
        ("shards", "abcd", 1.3, 1.0),  # of the records that are touched
    ],
)
def test_little_more_is_fetched_than_is_needed(proxy, everything, root, names, most_bytes, most_requests):
    data = _open(f"s3://bucket/{root}", crop_length=65536)
    access = _access(data)
    audios = [track.audio for track in data.catalog.train + data.catalog.validation if track.key[0] in names]
    for audio in audios:  # openings are fetched once
        audio.read(0, 100)
    bytes_before, requests_before = access.fetched_bytes, access.requests
    needed, rng = 0, np.random.default_rng(0)
    for i in range(24):
        audio = audios[i % len(audios)]
        start = int(rng.integers(audio.frames - 65536))
        audio.read(start, 65536)
        if root == "shards":
            first, last = start // audio.record_frames, (start + 65535) // audio.record_frames
            needed += sum(map(len, audio.shard.read(audio.first_record + first, last - first + 1)))
        else:
            needed += 65536 * audio.path.size // audio.frames
    twice = 2 if root == "shards" else 1  # the records were read again to be measured
    assert (access.fetched_bytes - bytes_before) / twice < most_bytes * needed
    assert 0 < (access.requests - requests_before) / twice <= most_requests * 24


def test_what_is_kept_is_not_fetched_again(proxy, tmp_path):
    def crops():
        data = _open("s3://bucket/long", cache=str(tmp_path / "cache"))
        return [data.train[i] for i in range(8)], _access(data).fetched_bytes

    first, fetched = crops()
    again, fetched_again = crops()
    np.testing.assert_array_equal(first, again)
    assert fetched > 0
    assert fetched_again == 0
    for block in (tmp_path / "cache").rglob("*.block"):
        block.write_bytes(block.read_bytes()[:-1] + b"?")
    damaged, fetched = crops()
    np.testing.assert_array_equal(first, damaged)
    assert fetched > 0


def _batches(data, num_steps, pause=0.0):
    batches = pipeline.batches(
        data.train, batch_size=4, start_step=0, num_steps=num_steps, num_threads=4, prefetch_batches=4
    )
    for batch in batches:
        yield batch
        time.sleep(pause)


@pytest.mark.slow
def test_batches_are_the_same_when_the_line_is_cut_for_a_while(proxy, everything):
    undisturbed = list(_batches(_open(str(everything / "long")), 20))
    data = _open("s3://bucket/long")
    batches, seen = _batches(data, 20), []
    for _ in range(5):
        seen.append(next(batches))
    proxy.cut()
    timer = threading.Timer(1.5, proxy.restore)
    timer.start()
    began = time.monotonic()
    seen += list(batches)
    timer.join()
    assert time.monotonic() - began > 1.4, "the cut was not noticed"
    np.testing.assert_array_equal(seen, undisturbed)
    assert data.health.replaced_crops == 0


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [3, 10])
def test_batches_are_the_same_when_the_server_is_killed_and_started_again(long_music, monkeypatch, seconds):
    s3.require_packages()
    server = s3.Server()
    server.upload(long_music, "bucket")
    s3.use(monkeypatch, server.port)
    undisturbed = list(_batches(_open(str(long_music)), 60))
    data = _open("s3://bucket")
    batches, seen, started = _batches(data, 60), [], []
    for _ in range(5):
        seen.append(next(batches))
    server.kill()

    def restart():
        time.sleep(seconds)
        started.append(s3.Server(server.port))
        started[0].upload(long_music, "bucket")  # until then there is no such bucket

    restarting = threading.Thread(target=restart)
    restarting.start()
    try:
        seen += list(batches)
    finally:
        restarting.join()
        started[0].kill()
    np.testing.assert_array_equal(seen, undisturbed)
    assert data.health.replaced_crops == 0


def test_a_server_that_stays_away_ends_the_run_and_spoils_no_file(proxy, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    root = "s3://bucket/long"
    data = _open(root, retry_seconds=0.5)
    proxy.cut()
    with pytest.raises(remote.UnreachableError, match=r"s3://bucket/long/.*data.retry_seconds=0.5"):
        data.train[0]
    assert data.health.bad_files == 0
    with pytest.raises(remote.UnreachableError, match=root):
        _open(root, retry_seconds=0.5)
    proxy.restore()
    assert data.train[0].any()
    # Found, and then not to be looked into: that is remembered of none.
    listed = remote.list_files
    monkeypatch.setattr(remote, "list_files", lambda *args: [listed(*args), [*listed(*args)], proxy.cut()][1])
    with pytest.raises(remote.UnreachableError):
        _open(root, retry_seconds=0.5, index=True, source="folder")
    monkeypatch.undo()
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize(
    ("root", "message"),
    [
        ("s3://nobody/music", "s3://nobody/music: there is no such file or bucket"),
        ("s3://bucket/nothing", "s3://bucket/nothing: there is nothing there"),
        ("s3://bucket/gone.jsonl", "s3://bucket/gone.jsonl: there is no such file or bucket"),
        ("nosuch://bucket/music", "nosuch://bucket/music: .*s3://, gs://, https:// and file:// can be read"),
    ],
)
def test_what_is_not_there_is_said_at_once(proxy, root, message):
    began = time.monotonic()
    with pytest.raises(DataError, match=message):
        _open(root)
    assert time.monotonic() - began < 15.0  # of 30 in which it would have been tried again


def test_credentials_that_are_refused_or_missing_are_said_at_once(proxy, server, monkeypatch):
    began = time.monotonic()
    server.require_keys(True)
    try:
        with pytest.raises(DataError, match=r"s3://bucket/music.*access is refused.*AWS_PROFILE"):
            _open("s3://bucket/music")
    finally:
        server.require_keys(False)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(DataError, match=r"s3://bucket/music.*access is refused.*AWS_PROFILE"):
        _open("s3://bucket/music")
    assert time.monotonic() - began < 15.0


def test_a_scheme_without_its_package_says_which_to_install(monkeypatch):
    fsspec = pytest.importorskip("fsspec")

    def missing(*args, **options):
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr(fsspec, "url_to_fs", missing)
    with pytest.raises(DataError, match=r"gs://bucket/music: .*pip install 'audiovae-jax\[gcs\]'"):
        _open("gs://bucket/music")


@pytest.mark.parametrize("seconds", [4, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, 5))])
def test_a_file_that_is_another_by_now_is_replaced_and_said_so(proxy, server, tmp_path, seconds):
    bucket = f"changing-{seconds}"
    for i, name in enumerate(("a.wav", "b.wav")):
        soundfile.write(tmp_path / name, 0.5 * synthesis.music(np.random.default_rng(i), 4 * RATE, RATE, 2), RATE)
    server.upload(tmp_path, bucket)
    warned = []
    data = _open(f"s3://{bucket}", warn=warned.append)
    before = [data.train[i] for i in range(4)]
    (changed,) = {track.audio.name for track in data.catalog.train}
    name = changed.rpartition("/")[2]
    soundfile.write(tmp_path / name, 0.4 * np.ones((seconds * RATE, 2)), RATE)
    server.upload(tmp_path, bucket)
    # Its opening is known; whichever crop needs more than that is the first to fail, and there is no other file.
    with pytest.raises(DataError, match="known to be bad|changed since"):
        [data.train[i] for i in range(8)]
    assert any("has changed since it was opened" in text for text in warned)
    assert np.asarray(before).any()


def test_a_tar_that_cannot_be_fetched_to_its_end_is_not_a_shorter_tar(proxy, monkeypatch):
    whole = remote._range

    def broken(file, start, end):
        if start > 0 and file.url.endswith("part-0.tar"):
            raise remote.UnreachableError(file.url, "not reached")
        return whole(file, start, end)

    monkeypatch.setattr(remote, "_range", broken)
    with pytest.raises(remote.UnreachableError, match=r"part-0.tar"):
        _open("s3://bucket/tars")


@pytest.fixture
def in_memory():
    """`(bytes, file)` behind a URL that needs no server."""
    fsspec = pytest.importorskip("fsspec")
    content = np.random.default_rng(0).bytes(5 * remote.BLOCK + 17)
    filesystem = fsspec.filesystem("memory")
    filesystem.pipe_file("/tests/content.bin", content)
    yield content, remote.open_url("memory://tests/content.bin", remote.Access(1.0))
    filesystem.rm("/tests", recursive=True)


def test_a_reader_reads_as_a_file_does(in_memory):
    content, file = in_memory
    rng = np.random.default_rng(1)
    with contextlib.closing(file.open()) as reader, io.BytesIO(content) as expected:
        for i in range(200):
            offset = int(rng.integers(-10, len(content) + 10))
            assert reader.seek(max(0, offset)) == expected.seek(max(0, offset))
            reader.expect(int(rng.integers(4 * remote.BLOCK)) if i % 3 else 0)
            count = int(rng.integers(2 * remote.BLOCK))
            assert reader.read(count) == expected.read(count)
            assert reader.tell() == expected.tell()
        assert reader.seek(-5, io.SEEK_END) == len(content) - 5
        assert reader.read() == content[-5:]


def test_a_request_is_tried_again_until_it_succeeds_or_the_time_is_over(in_memory, monkeypatch):
    content, file = in_memory
    filesystem, _ = file.access.filesystem(file.url)
    fetch, failures = type(filesystem).cat_file, iter([OSError("reset"), TimeoutError(), ConnectionError()])

    def failing(self, *args, **options):
        for error in failures:
            raise error
        return fetch(self, *args, **options)

    monkeypatch.setattr(type(filesystem), "cat_file", failing)
    assert file.open().read(10) == content[:10]
    monkeypatch.setattr(type(filesystem), "cat_file", lambda *args, **options: (_ for _ in ()).throw(OSError("away")))
    reader, began = file.open(), time.monotonic()
    reader.seek(3 * remote.BLOCK)
    assert reader.read(10) == b""
    assert isinstance(reader.error, remote.UnreachableError)
    assert "memory://tests/content.bin: not reached within data.retry_seconds=1 (away)" in str(reader.error)
    assert 0.3 < time.monotonic() - began < 10.0


def test_an_answer_that_breaks_off_is_asked_for_again(in_memory, monkeypatch):
    content, file = in_memory
    filesystem, _ = file.access.filesystem(file.url)
    fetch, failures = type(filesystem).cat_file, [1]

    class ContentLengthError(Exception):  # as aiohttp has it
        code = 400

    def breaking(self, *args, **options):
        if failures and failures.pop():
            raise OSError("Response payload is not completed") from ContentLengthError()
        return fetch(self, *args, **options)

    monkeypatch.setattr(type(filesystem), "cat_file", breaking)
    assert file.open().read(10) == content[:10]


def test_a_file_that_has_become_shorter_is_an_error(in_memory):
    content, file = in_memory
    filesystem, path = file.access.filesystem(file.url)
    filesystem.pipe_file(path, content[: 3 * remote.BLOCK])
    reader = file.open()
    reader.expect(len(content))
    assert reader.read(len(content)) == b""
    assert "has it changed?" in str(reader.error)


def test_a_file_that_was_there_is_looked_for_a_little_while(in_memory, monkeypatch):
    content, file = in_memory
    filesystem, path = file.access.filesystem(file.url)
    filesystem.rm(path)
    timer = threading.Timer(0.3, filesystem.pipe_file, (path, content))
    timer.start()
    assert file.open().read(10) == content[:10]
    timer.join()
    filesystem.rm(path)
    monkeypatch.setattr(remote, "_GONE_SECONDS", 0.2)
    reader = file.open()
    reader.seek(2 * remote.BLOCK)
    assert reader.read(10) == b""
    assert "there is no such file" in str(reader.error)
    filesystem.pipe_file(path, content)


def test_openings_are_fetched_once(in_memory):
    _, file = in_memory
    for _ in range(3):
        file.open().read(100)
    assert file.access.requests == 2  # the first was for its size


def test_a_wav_of_which_nothing_comes_says_why(in_memory, monkeypatch):
    _, file = in_memory
    monkeypatch.setattr(remote, "_range", lambda *args: (_ for _ in ()).throw(DataError("the line is dead")))
    with pytest.raises(DataError, match="the line is dead"):
        audio_file.probe(file)


def test_a_cache_stays_under_its_capacity_over_two_processes(tmp_path):
    capacity, block = 24 << 20, bytes(range(256)) * 128
    caches = [BlockCache(tmp_path, capacity), BlockCache(tmp_path, capacity)]
    for i in range(1200):
        caches[i % 2].put(f"block {i}", block)
        if i % 100 == 99:
            size = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
            assert size <= capacity
    assert size > capacity / 2, "it is emptied more than it has to be"
    assert caches[0].get("block 1199") == caches[1].get("block 1199") == block


def test_a_cache_deletes_what_was_not_used_for_longest(tmp_path):
    cache, block = BlockCache(tmp_path, 4 << 20), bytes(32 << 10)
    for i in range(400):
        cache.put(f"block {i}", block)
        time.sleep(1e-4)
        assert cache.get("block 0") == block
    assert cache.get("block 1") is None
    assert cache.get("block 399") == block


def test_a_cache_that_cannot_be_written_to_is_an_error_at_the_start_and_none_later(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="config.data.cache="):
        BlockCache(tmp_path / "file", 1 << 20)
    cache = BlockCache(tmp_path / "cache", 64 << 20)
    (tmp_path / "cache").rmdir()
    (tmp_path / "cache").write_text("")
    cache.put("block", b"bytes")
    assert cache.get("block") is None
