"""Finding audio: links, loops, and names that are no text."""

import os
import re

import pytest

from audiovae_jax import errors
from audiovae_jax.data.audio import audio_file, files


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


INTRUDERS = (
    "._a.wav",
    "deeper/._b.flac",
    ".ipynb_checkpoints/a-checkpoint.wav",
    "__MACOSX/a.wav",
    "__MACOSX/deeper/._b.flac",
    "deeper/.Trash-1000/files/c.wav",
)


@pytest.fixture
def intruded(folder):
    for name in INTRUDERS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"\x00\x05\x16\x07")
    return folder


def test_hidden_files_and_folders_are_left_out_and_named(intruded):
    assert _names(intruded) == ["a.wav", "deeper/b.FLAC"]
    _, left_out = files.scan(intruded, (".wav", ".flac"))
    assert {os.path.relpath(name, intruded) for name, _ in left_out} == {
        "._a.wav", "deeper/._b.flac", ".ipynb_checkpoints", "__MACOSX", "deeper/.Trash-1000",
    }  # fmt: skip
    (reason,) = {reason for _, reason in left_out}
    assert "macOS and Jupyter" in reason
    (intruded / ".DS_Store").touch()  # no audio by its name
    assert len(files.scan(intruded, (".wav", ".flac"))[1]) == len(left_out)


def test_a_hidden_folder_above_the_root_hides_nothing(intruded, tmp_path):
    (tmp_path / ".cache").mkdir()
    (tmp_path / "root").rename(tmp_path / ".cache" / "root")
    assert _names(tmp_path / ".cache" / "root") == ["a.wav", "deeper/b.FLAC"]


def test_a_link_into_a_hidden_folder_is_read_by_its_own_name(folder):
    """As git-annex and DVC store files."""
    (folder / ".git" / "annex").mkdir(parents=True)
    (folder / ".git" / "annex" / "key.wav").touch()
    (folder / "song.wav").symlink_to(".git/annex/key.wav")
    assert _names(folder) == ["a.wav", "deeper/b.FLAC", "song.wav"]


def test_names_of_a_listing_are_hidden_like_those_of_a_folder(intruded):
    names = [path.relative_to(intruded).as_posix() for path in intruded.rglob("*") if path.is_file()]
    assert sorted(name for name in names if files.is_read(name, (".wav", ".flac"))) == _names(intruded)
    of_folder = {os.path.relpath(name, intruded) for name, _ in files.scan(intruded, (".wav", ".flac"))[1]}
    assert set(files.ignored(names, (".wav", ".flac"))) == of_folder


@pytest.mark.parametrize(
    ("name", "remedy"),
    [("a.amr", r"\.amr is not read; convert it to FLAC"), ("b.OGV", r"\.ogv is not read"),
     ("c.mpc", r"\.mpc"), ("shard.tar.gz", r"\.tar\.gz cannot be read at random .* decompress it to a \.tar"),
     ("shard.TGZ", r"\.tgz cannot")],
)  # fmt: skip
def test_audio_that_is_not_read_is_named_with_the_remedy(folder, name, remedy):
    (folder / name).touch()
    found, ((path, reason),) = files.scan(folder, audio_file.EXTENSIONS)
    assert (len(found), path) == (2, str(folder / name))
    assert re.match(remedy, reason)


def test_what_is_read_is_not_listed_as_unread():
    assert not set(audio_file.EXTENSIONS) & set(audio_file.UNREAD_EXTENSIONS)
    assert not files.ignored([f"a{suffix}" for suffix in audio_file.EXTENSIONS], audio_file.EXTENSIONS)
    assert not files.ignored(["cover.jpg", "notes.txt", "a.json"], audio_file.EXTENSIONS)
