"""Finding audio: links, loops, and names that are no text."""

import os

import pytest

from audiovae_jax import errors
from audiovae_jax.data.audio import files


@pytest.fixture
def folder(tmp_path):
    for name in ("a.wav", "deeper/b.FLAC", "deeper/notes.txt"):
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).touch()
    return tmp_path / "root"


def _names(root, **options):
    return [path.relative_to(root).as_posix() for path in files.find(root, (".wav", ".flac"), **options)]


def test_files_at_any_depth_are_found_by_their_ending(folder):
    assert _names(folder) == ["a.wav", "deeper/b.FLAC"]
    os.mkfifo(folder / "pipe.wav")
    (folder / ".a.123.tmp.wav").touch()
    assert _names(folder) == ["a.wav", "deeper/b.FLAC"]


def test_loops_end_and_each_file_counts_once(folder):
    (folder / "loop").symlink_to(".")
    (folder / "deeper" / "up").symlink_to("..")
    (folder / "again").symlink_to("deeper")
    (folder / "0.wav").symlink_to("a.wav")
    (folder / "1.wav").symlink_to("a.wav")
    assert _names(folder) == ["a.wav", "deeper/b.FLAC"]


def test_what_lies_elsewhere_is_found_through_links_once(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "c.wav").touch()
    (folder / "x").symlink_to(tmp_path / "elsewhere")
    (folder / "y").symlink_to(tmp_path / "elsewhere")
    (folder / "z.wav").symlink_to(tmp_path / "elsewhere" / "c.wav")
    assert _names(folder) == ["a.wav", "deeper/b.FLAC", "x/c.wav"]
    (folder / "gone.wav").symlink_to("nowhere.wav")
    assert "gone.wav" in _names(folder)  # so that its reader says why it cannot be used


def test_folders_can_be_left_out(folder):
    (folder / "link").symlink_to("deeper")
    assert _names(folder, leave_out=[folder / "deeper"]) == ["a.wav"]


def test_a_name_that_is_no_text_is_printed_escaped(folder):
    try:
        (folder / os.fsdecode(b"\xff.wav")).touch()
    except OSError:
        pytest.skip("this file system takes names of valid text alone")
    (found,) = [path for path in files.find(folder, (".wav",)) if path.name != "a.wav"]
    assert errors.printable(found.name) == "\\udcff.wav"
    assert errors.printable("ü.wav") == "ü.wav"


def test_a_link_to_itself_is_in_nobodys_way(folder):
    (folder / "self.wav").symlink_to("self.wav")
    assert _names(folder) == ["a.wav", "deeper/b.FLAC", "self.wav"]
