import os
import threading
import time
from pathlib import Path

import pytest

from audiovae_jax.storage import atomic


def test_a_name_as_long_as_can_be_is_written(tmp_path):
    for name in ("x" * 251 + ".wav", "ü" * 125 + ".wav", "y" * 255):
        with atomic.replacing(tmp_path / name) as temporary:
            temporary.write_text(name)
        assert (tmp_path / name).read_text() == name
    with atomic.replacing_folder(tmp_path / ("z" * 255)) as temporary:
        temporary.mkdir()
    assert len(list(tmp_path.iterdir())) == 4


def test_a_failure_keeps_existing_files(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").touch()

    def write_file():
        with atomic.replacing(tmp_path / "a.txt") as temporary:
            temporary.write_text("new")
            raise KeyError

    def write_folder():
        with atomic.replacing_folder(tmp_path / "folder") as temporary:
            temporary.mkdir()
            raise KeyError

    for write in (write_file, write_folder):
        with pytest.raises(KeyError):
            write()
    assert (tmp_path / "a.txt").read_text() == "old"
    assert [p.name for p in (tmp_path / "folder").iterdir()] == ["old"]
    with atomic.replacing_folder(tmp_path / "folder") as temporary:
        temporary.mkdir()
        (temporary / "new").touch()
    assert [p.name for p in (tmp_path / "folder").iterdir()] == ["new"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.txt", "folder"]


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path):
    (tmp_path / "v3").mkdir()
    (tmp_path / "v3" / "old").touch()
    (tmp_path / "latest").symlink_to("v3")
    for path in (tmp_path / "latest", tmp_path / "v3" / ".." / "v3" / "."):
        with atomic.replacing_folder(path) as temporary:
            temporary.mkdir()
            (temporary / "new").touch()
        assert [p.name for p in (tmp_path / "v3").iterdir()] == ["new"]
    assert (tmp_path / "latest").is_symlink()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", "v3"]


def test_temporary_names_are_known_again(tmp_path):
    for ending in ("tmp.wav", "tmp", "old"):
        assert atomic.is_temporary(atomic.beside(tmp_path / "song.wav", ending).name)
    for name in ("song.wav", ".hidden.wav", "a.tmp.wav"):
        assert not atomic.is_temporary(name)


def test_an_unwritable_output_is_an_early_error(tmp_path):
    atomic.require_writable(tmp_path / "not" / "there" / "yet")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        atomic.require_writable(tmp_path / "file" / "below")
    with pytest.raises(OSError, match=r"(?i)no such file|permission|read-only"):
        atomic.require_writable("/proc/nope" if os.path.isdir("/proc") else "/nope/nope")


def test_a_url_is_no_path_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write_file(path):
        with atomic.replacing(path) as temporary:
            temporary.write_text("new")

    def write_folder(path):
        with atomic.replacing_folder(path) as temporary:
            temporary.mkdir()

    for write in (write_file, write_folder, atomic.require_writable):
        for url in ("s3://bucket/x.json", "gs://bucket/x.json", "file:///x.json"):
            with pytest.raises(OSError, match="is a URL, and a path on this machine is needed"):
                write(Path(url))
    assert list(tmp_path.iterdir()) == []
    write_file(tmp_path / "s3:" / "x.json")  # also the name of a folder, if it is used as one


def test_a_folder_that_is_being_replaced_is_waited_for(tmp_path):
    folder = tmp_path / ("m" * 250)  # whose name is shortened in the temporary one
    aside = atomic.beside(folder, "old", folder.name)
    aside.mkdir()
    threading.Timer(0.2, folder.mkdir).start()
    atomic.await_swap(folder)
    assert folder.is_dir()
    start = time.monotonic()
    atomic.await_swap(tmp_path / "another")  # no temporary folder remains
    assert time.monotonic() - start < 0.9
