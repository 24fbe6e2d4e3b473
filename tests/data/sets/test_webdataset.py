"""WebDataset tars: hidden members, and samples of several members."""

import io
import tarfile

import numpy as np
import pytest
import soundfile

from audiovae_jax.data.sets import catalog, folder, probing, sources, webdataset
from audiovae_jax.errors import DataError

OPTIONS = probing.Options(channels=1, num_threads=2)


def _wav(value):
    written = io.BytesIO()
    soundfile.write(written, np.full(800, value), 8000, format="WAV")
    return written.getvalue()


def _pack(path, members):
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def _keys(side):
    return [track.key for track in side]


@pytest.mark.parametrize("start", ["", "./"])
def test_hidden_members_change_neither_split_nor_fingerprint(tmp_path, start):
    songs = {f"{start}{i:03d}.wav": _wav(0.1 + i / 100) for i in range(30)}
    _pack(tmp_path / "clean" / "0.tar", songs)
    intruders = {
        f"{start}._{i:03d}.wav": b"\x00\x05\x16\x07" for i in range(30)
    } | {f"{start}.ipynb_checkpoints/000.wav": _wav(0.1), f"{start}__MACOSX/001.wav": _wav(0.1)}  # fmt: skip
    _pack(tmp_path / "intruded" / "0.tar", songs | intruders)
    (tmp_path / "intruded" / "._0.tar").write_bytes(b"\x00\x05\x16\x07")
    clean, found = (webdataset.scan(str(tmp_path / name), OPTIONS, 0.1) for name in ("clean", "intruded"))
    assert _keys(found.validation) == _keys(clean.validation)
    assert _keys(found.train) == _keys(clean.train)
    assert (found.fingerprint, found.skipped) == (clean.fingerprint, ())
    assert len(found.ignored) == 30 + 2 + 1


def test_a_tar_s_split_and_fingerprint_are_as_they_were(tmp_path):
    """Names whose part up to the first dot is unique keep the hash of their whole name."""
    songs = {f"deep.er/song {i}.v{i}.wav": _wav(0.1 + i / 100) for i in range(30)}
    _pack(tmp_path / "0.tar", songs | {f"deep.er/song {i}.json": b"{}" for i in range(30)})
    found = webdataset.scan(str(tmp_path), OPTIONS, 0.1)
    # Printed by the version before samples were kept together.
    assert found.fingerprint == "c3c7fcebcbe90ac6"
    assert _keys(found.validation) == [f"deep.er/song {i}.v{i}.wav" for i in (0, 13, 21, 4)]


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.001, 0.999])
@pytest.mark.parametrize("count", [2, 5, 40])
def test_members_of_a_sample_are_on_one_side(tmp_path, count, fraction):
    parts = ("mix", "vocals", "drums", "bass")
    songs = {f"{i:03d}.{part}.wav": _wav(0.1 + i / 100) for i in range(count) for part in parts}
    _pack(tmp_path / "0.tar", dict(list(songs.items())[::2]))
    _pack(tmp_path / "1.tar", dict(list(songs.items())[1::2]))
    found = webdataset.scan(str(tmp_path), OPTIONS, fraction)
    train, validation = ({key.partition(".")[0] for key in _keys(side)} for side in (found.train, found.validation))
    assert train
    assert validation
    assert not train & validation
    assert len(found.train) + len(found.validation) == 4 * count


def test_samples_keep_their_side_when_others_come_or_are_broken(tmp_path):
    songs = {f"{i:03d}.{part}.wav": _wav(0.2) for i in range(40) for part in ("mix", "vocals")}
    _pack(tmp_path / "all" / "0.tar", songs)
    broken = {name: b"broken" if name.endswith("vocals.wav") else content for name, content in songs.items()}
    _pack(tmp_path / "broken" / "0.tar", broken)
    whole, found = (webdataset.scan(str(tmp_path / name), OPTIONS, 0.2) for name in ("all", "broken"))
    assert len(found.skipped) == 40
    assert set(_keys(found.validation)) == {key for key in _keys(whole.validation) if "mix" in key}


def test_one_sample_alone_is_on_both_sides(tmp_path):
    _pack(tmp_path / "0.tar", {f"song.{part}.wav": _wav(0.2) for part in ("mix", "vocals")})
    found = webdataset.scan(str(tmp_path), OPTIONS, 0.1)
    assert _keys(found.train) == _keys(found.validation) == ["song.mix.wav", "song.vocals.wav"]


def test_equal_keys_in_tars_whose_names_repeat_are_other_samples(tmp_path):
    for i in range(20):
        _pack(tmp_path / f"{i}.tar", {"0.mix.wav": _wav(0.2), "0.vocals.wav": _wav(0.2)})
    found = webdataset.scan(str(tmp_path), OPTIONS, 0.3)
    train, validation = ({key.partition("/")[0] for key in _keys(side)} for side in (found.train, found.validation))
    assert len(train) + len(validation) == 20


def test_a_fingerprint_tells_samples_from_single_files(tmp_path):
    _pack(tmp_path / "tars" / "0.tar", {f"{i}.{part}.wav": _wav(0.2) for i in range(9) for part in ("mix", "vocals")})
    (tmp_path / "songs").mkdir()
    with tarfile.open(tmp_path / "tars" / "0.tar") as archive:
        archive.extractall(tmp_path / "songs", filter="data")
    packed = webdataset.scan(str(tmp_path / "tars"), OPTIONS, 0.1)
    assert packed.fingerprint != folder.scan(str(tmp_path / "songs"), OPTIONS, 0.1).fingerprint
    tracks = [*packed.train, *packed.validation]
    assert catalog.fingerprint(tracks) == catalog.fingerprint(list(tracks))


def test_compressed_tars_beside_others_are_named(tmp_path, micro_config):
    _pack(tmp_path / "0.tar", {f"{i}.wav": _wav(0.2) for i in range(3)} | {"x.amr": b""})
    (tmp_path / "1.tar.gz").touch()
    found = sources.open_root(str(tmp_path), "auto", OPTIONS, micro_config.data)
    reasons = {name.rpartition("/")[2]: reason for name, reason in found.ignored}
    assert "decompress it to a .tar" in reasons["1.tar.gz"]
    assert ".amr is not read" in reasons["x.amr"]


def test_a_tar_of_what_is_not_read_says_so(tmp_path):
    _pack(tmp_path / "0.tar", {"a.amr": b"", "b.amr": b""})
    with pytest.raises(DataError, match=r"contains no tar file with audio\n  .amr is not read; .*: 2, the first is"):
        webdataset.scan(str(tmp_path), OPTIONS, 0.1)
