"""A visitor's files are private, and removed when the visitor leaves."""

import os
from pathlib import Path

import pytest

from audiovae_jax.errors import DataError
from audiovae_jax.evaluation.listening import sessions
from audiovae_jax.evaluation.listening.sessions import Gone, Sessions


def test_two_visitors_have_folders_that_cannot_be_guessed(tmp_path):
    visitors = Sessions(tmp_path)
    a, b = visitors.session("a"), visitors.session("b")
    assert a is visitors.session("a")
    assert a is not b
    assert len(a.folder.name) == 32
    assert a.folder.parent == b.folder.parent == tmp_path / "made"


def test_the_last_two_results_of_a_kind_are_kept(tmp_path):
    session = Sessions(tmp_path).session("a")
    made = [session.fresh_folder("wav") for _ in range(3)]
    other = session.fresh_folder("latents")
    assert [folder.exists() for folder in (*made, other)] == [False, True, True, True]


def test_a_visitor_who_leaves_is_forgotten_and_the_work_stops(tmp_path, monkeypatch):
    visitors = Sessions(tmp_path)
    session = visitors.session("a")
    folder, seen = session.fresh_folder("wav"), []
    report = session.watched(lambda share, text: seen.append(share))
    report(0.5, "")
    visitors.forget("a")
    with pytest.raises(Gone):
        report(0.6, "")
    assert (seen, folder.exists()) == ([0.5], False)
    assert visitors.session("a") is not session
    idle = visitors.session("idle")
    visitors.sweep()
    assert not idle.is_gone
    monkeypatch.setattr(sessions, "_IDLE", -1.0)
    visitors.sweep()
    assert idle.is_gone


def test_only_leftovers_of_broken_uploads_are_removed(tmp_path):
    visitors = Sessions(tmp_path / "page")
    visitors.sweep()  # before there is a folder
    made = visitors.session("a").fresh_folder("wav")
    old, fresh, held, empty = (visitors.folder / name for name in ("tmpold", "tmpfresh", "ab/song.wav", "cd"))
    held.parent.mkdir()
    empty.mkdir()
    for path in (old, fresh, held):
        path.touch()
    for path in (old, held, held.parent, empty, made, made.parent.parent):
        os.utime(path, (1, 1))
    visitors.sweep()
    assert [path.exists() for path in (old, fresh, held, empty, made)] == [False, True, True, False, True]


def test_one_who_left_gets_no_folder_again(tmp_path, monkeypatch):
    visitors = Sessions(tmp_path)
    session = visitors.session("a")
    visitors.forget("a")
    with pytest.raises(Gone):
        session.fresh_folder("wav")
    session, mkdir = visitors.session("b"), Path.mkdir

    def leaving(self, *given, **options):
        mkdir(self, *given, **options)
        session.is_gone = True

    monkeypatch.setattr(Path, "mkdir", leaving)
    with pytest.raises(Gone):
        session.fresh_folder("wav")
    assert not list((tmp_path / "made").iterdir())


def test_closing_stops_those_who_are_there_and_those_who_come(tmp_path):
    visitors = Sessions(tmp_path)
    session = visitors.session("a")
    visitors.close()
    assert session.is_gone
    assert visitors.session("b").is_gone


def test_a_file_that_is_missing_is_named_by_its_control(tmp_path):
    (tmp_path / "song.wav").touch()
    visitors = Sessions(tmp_path)
    assert visitors.uploaded(str(tmp_path / "song.wav")) == tmp_path / "song.wav"
    for gone in (tmp_path / "other.wav", tmp_path):
        with pytest.raises(DataError, match='"Audio" was removed; upload it again'):
            visitors.uploaded(str(gone))
    for nothing in (None, ""):
        with pytest.raises(DataError, match="upload or record one"):
            visitors.uploaded(nothing)


def test_messages_do_not_say_where_files_lie(tmp_path):
    visitors = Sessions(tmp_path)
    path = visitors.session("a").fresh_folder("wav") / "song 1.wav"
    said = visitors.public(f"{path}: bad; {tmp_path / ('0' * 64) / 'up.wav'}: worse")
    assert said == "song 1.wav: bad; up.wav: worse"
