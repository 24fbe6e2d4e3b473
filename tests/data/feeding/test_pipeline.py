import json
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiovae_jax.data.feeding import pipeline
from audiovae_jax.errors import ConfigError, DataError, RootError


class Numbers:
    """Records with record `i` equal to `[[i]]`."""

    def __getitem__(self, index):
        return np.full((1, 1), index)


def _batches(**changes):
    options = {"batch_size": 4, "start_step": 0, "num_steps": 5, "num_threads": 2, "prefetch_batches": 2, **changes}
    return [batch[:, 0, 0].tolist() for batch in pipeline.batches(Numbers(), **options)]


def test_every_record_once_in_order_for_any_number_of_threads():
    expected = [list(range(4 * step, 4 * step + 4)) for step in range(5)]
    assert _batches() == _batches(num_threads=8, prefetch_batches=8) == _batches(num_threads=1) == expected


def test_a_resumed_run_sees_what_it_would_have_seen():
    assert _batches(start_step=3) == _batches()[3:]


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_get_contiguous_rows_that_make_up_the_batch(hosts):
    parts = [_batches(process_index=i, process_count=hosts) for i in range(hosts)]
    joined = [[row for part in parts for row in part[step]] for step in range(5)]
    assert joined == _batches()


def test_a_fixed_batch_repeats(micro_config):
    micro_config.data.fixed_batch = True
    data = pipeline.open_data(micro_config.data, batch_size=2, seed=0)
    np.testing.assert_array_equal(data.train[0], data.train[2])
    np.testing.assert_array_equal(data.validation[1], data.train[1])
    assert (data.train[0] != data.train[1]).any()


@pytest.fixture
def roots(tmp_path):
    """Folders of short files: `one` of 4, `two` of 3, `three, four` of 2, and `one/held` of 2."""
    rng = np.random.default_rng(0)
    for name, count in (("one", 4), ("two", 3), ("three, four", 2), ("one/held", 2)):
        (tmp_path / name).mkdir()
        for i in range(count):
            soundfile.write(tmp_path / name / f"{i}.wav", 0.3 * rng.standard_normal((8000, 2)), 44100)
    return tmp_path


def _opened(config, **keys):
    """Return the names of the files on each side, relative to the folder that `keys` call DIR."""
    folder = keys.pop("folder")
    config.data.index = False
    for key, value in keys.items():
        config.data[key] = value
    found = pipeline.open_data(config.data, batch_size=4, seed=0).catalog
    sides = ([str(Path(track.audio.name).relative_to(folder)) for track in side]
             for side in (found.train, found.validation))  # fmt: skip
    return *map(sorted, sides), found


def test_several_roots_are_drawn_from_as_one(micro_config, roots):
    train, validation, found = _opened(micro_config, folder=roots, root=f"{roots}/one/held, {roots}/two")
    assert len(set(train) | set(validation)) == len(train) + len(validation) == 5
    # Each root is split in the same way as on its own.
    alone = _opened(micro_config, folder=roots, root=f"{roots}/two")
    assert [name for name in validation if name.startswith("two/")] == alone[1]
    assert found.fingerprint != alone[2].fingerprint
    assert "; " in found.origin


def test_a_root_with_a_comma_in_its_name_is_one(micro_config, roots):
    train, validation, _ = _opened(micro_config, folder=roots, root=f"{roots}/three, four")
    assert sorted(train + validation) == ["three, four/0.wav", "three, four/1.wav"]


def test_a_validation_root_is_used_completely_and_others_are_not_split(micro_config, roots):
    keys = {"root": f"{roots}/one", "val_root": f"{roots}/two,{roots}/three, four"}
    with pytest.raises(
        DataError, match="config.data.val_root=.*/three: there is no such folder"
    ):  # a comma in one of several names
        _opened(micro_config, folder=roots, **keys)
    train, validation, _ = _opened(micro_config, folder=roots, **keys | {"val_root": f"{roots}/two"})
    assert train == [f"one/{i}.wav" for i in range(4)] + ["one/held/0.wav", "one/held/1.wav"]
    assert validation == [f"two/{i}.wav" for i in range(3)]


def test_an_error_names_the_key_of_the_root_and_leaves_its_path_as_it_is(micro_config, roots):
    missing = f"{roots}/config.data.root=old"
    for key, other in (("root", None), ("val_root", f"{roots}/one")):
        micro_config.data.root = other
        micro_config.data[key] = missing
        with pytest.raises(RootError) as raised:
            pipeline.open_data(micro_config.data, batch_size=4, seed=0)
        assert str(raised.value) == f"config.data.{key}={missing}: there is no such folder"
        assert raised.value.path == missing


def test_a_validation_root_inside_a_training_root_is_not_trained_on(micro_config, roots):
    inside, outside = f"{roots}/one/held", f"{roots}/one"
    files = [f"one/{i}.wav" for i in range(4)], [f"one/held/{i}.wav" for i in range(2)]
    assert _opened(micro_config, folder=roots, root=outside, val_root=inside)[:2] == files
    assert _opened(micro_config, folder=roots, root=inside, val_root=outside)[:2] == files[::-1]
    with pytest.raises(ConfigError, match=r"val_root=.*/one/ is also a training root; give another folder"):
        _opened(micro_config, folder=roots, root=outside, val_root=f"{outside}/")


def _pack(folder, *tars):
    for tar in tars:
        with tarfile.open(tar, "w") as archive:
            for path in sorted(folder.glob("*.wav")):
                archive.add(path, path.name)


def _list(manifest, *folders):
    files = sorted(path for folder in folders for path in folder.glob("*.wav"))
    manifest.write_text("".join(json.dumps({"path": str(path)}) + "\n" for path in files))


@pytest.mark.parametrize("layout", ["tar", "listed to train on", "listed to validate on", "linked"])
def test_nothing_that_is_validated_on_is_trained_on_however_it_is_reached(micro_config, roots, tmp_path, layout):
    one, held, two = roots / "one", roots / "one" / "held", roots / "two"
    if layout == "tar":
        (tmp_path / "tars").mkdir()
        _pack(two, tmp_path / "tars" / "a.tar")
        _pack(one, tmp_path / "tars" / "held.tar")
        keys = {"root": tmp_path / "tars", "val_root": tmp_path / "tars" / "held.tar"}
    elif layout == "listed to train on":
        _list(tmp_path / "list.jsonl", one, held)
        keys = {"root": tmp_path / "list.jsonl", "val_root": held}
    elif layout == "listed to validate on":
        _list(tmp_path / "list.jsonl", held)
        keys = {"root": one, "val_root": tmp_path / "list.jsonl"}
    else:
        (two / "linked").symlink_to(held)
        keys = {"root": two, "val_root": held}
    micro_config.data.index = False
    for key, value in keys.items():
        micro_config.data[key] = str(value)
    found = pipeline.open_data(micro_config.data, batch_size=4, seed=0).catalog
    names = [{os.path.realpath(track.audio.name) for track in side} for side in (found.train, found.validation)]
    assert names[0]
    assert names[1]
    assert not names[0] & names[1]


def test_validation_tracks_of_a_root_are_not_trained_on_by_another(micro_config, roots):
    for i in range(20):
        shutil.copy(roots / "one" / "0.wav", roots / "one" / "held" / f"more{i}.wav")
    train, validation, _ = _opened(micro_config, folder=roots, root=f"{roots}/one,{roots}/one/held")
    assert validation
    assert not set(train) & set(validation)
    with pytest.raises(ConfigError, match="the root .*/two/ is named twice"):
        _opened(micro_config, folder=roots, root=f"{roots}/two/,{roots}/two")


def test_all_of_a_root_validated_on_leaves_nothing_to_train_on(micro_config, roots, tmp_path):
    _list(tmp_path / "list.jsonl", roots / "two")
    with pytest.raises(DataError, match="nothing is left to train on"):
        _opened(micro_config, folder=roots, root=f"{roots}/two", val_root=str(tmp_path / "list.jsonl"))


def test_a_mix_keeps_its_shares_where_validation_is_elsewhere(micro_config, roots):
    micro_config.data.mix = ((f"{roots}/one/held", 3.0), (f"{roots}/two", 1.0))
    train, validation, found = _opened(micro_config, folder=roots, val_root=f"{roots}/three, four")
    assert (len(train), len(validation)) == (5, 2)
    shares = [sum(track.share() for track in found.train if track.key.startswith(part)) for part in ("0/", "1/")]
    assert shares[0] == pytest.approx(3 * shares[1])


@pytest.mark.parametrize(
    ("root", "val_root", "message"),
    [
        ("/a,,/b", None, "'/a,,/b' has a root with no name"),
        ("/a", "/b,", "'/b,' has a root with no name"),
        ("/a,/b", None, "config.data.root=/a: there is no such folder"),
    ],
)
def test_roots_that_are_none_are_refused(micro_config, root, val_root, message):
    micro_config.data.root, micro_config.data.val_root = root, val_root
    with pytest.raises((ConfigError, DataError), match=message):
        pipeline.open_data(micro_config.data, batch_size=4, seed=0)
