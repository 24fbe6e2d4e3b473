"""Many files: the structure is kept, existing outputs are skipped, and a bad file does not stop the others."""

import os
import subprocess
import sys
import time
import warnings

import pytest

from audiovae_jax.commands import file_jobs
from audiovae_jax.errors import DataError


@pytest.fixture
def folder(tmp_path):
    for name in ("in/a.wav", "in/deeper/b.flac", "in/notes.txt", "single.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


def _plan(folder, *inputs, output="out", suffix=".wav"):
    names = [str(folder / name) for name in inputs]
    return file_jobs.plan(names, str(folder / output), extensions=(".wav", ".flac"), suffix=suffix)


def _copy(source, target, progress):
    progress(0.5)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(source.read_text())


def test_the_structure_is_kept(folder):
    jobs = _plan(folder, "in", "single.wav")
    made = sorted(str(job.target.relative_to(folder)) for job in jobs)
    assert made == ["out/a.wav", "out/deeper/b.wav", "out/single.wav"]
    (job,) = _plan(folder, "single.wav", output="other.wav")
    assert job.target == folder / "other.wav"


def test_what_is_left_out_of_a_folder_is_printed(folder, capsys):
    for name in ("in/._a.wav", "in/deeper/._b.flac", "in/c.amr"):
        (folder / name).touch()
    assert len(_plan(folder, "in")) == 2
    hidden, unread = sorted(capsys.readouterr().out.splitlines(), reverse=True)
    assert hidden.startswith("left out: hidden files")
    assert hidden.endswith(f": 2, the first is {folder}/in/._a.wav")
    assert unread == f"left out: .amr is not read; convert it to FLAC: 1, the first is {folder}/in/c.amr"


def test_existing_outputs_are_skipped_by_default(folder, capsys):
    jobs = _plan(folder, "in")
    file_jobs.run(jobs[:1], _copy)
    file_jobs.run(jobs, _copy)
    assert "1 written, 1 skipped (already there), 0 failed" in capsys.readouterr().out
    jobs[0].target.write_text("old")
    file_jobs.run(jobs, _copy, overwrite=True)
    assert jobs[0].target.read_text() == "in/a.wav"


def test_a_warning_names_its_target(folder, capsys):
    def process(source, target, progress):
        _copy(source, target, progress)
        return "too loud" if source.name == "a.wav" else None

    file_jobs.run(_plan(folder, "in"), process)
    said = capsys.readouterr().out.splitlines()
    assert [line for line in said if "warning" in line] == [f"warning: {folder}/out/a.wav: too loud"]


def test_warnings_are_lines_that_do_not_name_code(folder, capsys):
    def process(source, target, progress):
        warnings.warn(f"{source.name} is truncated", UserWarning, stacklevel=1)

    file_jobs.run(_plan(folder, "in"), process)
    assert capsys.readouterr().out.splitlines()[:2] == ["warning: a.wav is truncated", "warning: b.flac is truncated"]


def test_one_bad_file_does_not_stop_the_rest(folder, capsys):
    def process(source, target, progress):
        if source.name == "a.wav":
            raise DataError(f"{source}: the file is empty")
        _copy(source, target, progress)

    jobs = _plan(folder, "in")
    with pytest.raises(DataError, match="1 of 2 files failed"):
        file_jobs.run(jobs, process)
    said = capsys.readouterr()
    assert "a.wav: the file is empty" in said.out + said.err
    assert [job.target.exists() for job in jobs] == [False, True]


def test_what_was_made_is_no_input_the_next_time(folder):
    jobs = _plan(folder, "in", output="in/out")
    file_jobs.run(jobs, _copy)
    assert [job.target for job in _plan(folder, "in", output="in/out")] == [job.target for job in jobs]
    with pytest.raises(DataError, match="in is both input and output"):
        _plan(folder, "in", output="in")
    assert len(_plan(folder, "in", output="in", suffix=".safetensors")) == 4  # these are not audio


def test_one_file_in_and_an_audio_name_out_means_that_file(folder):
    options = {"extensions": (".wav",), "suffix": ".wav", "file_suffixes": (".flac",)}
    (job,) = file_jobs.plan([str(folder / "single.wav")], str(folder / "one.flac"), **options)
    assert job.target == folder / "one.flac"
    expected = "one.flac is the name of one file, but there are several outputs; give a folder"
    with pytest.raises(DataError, match=expected):
        file_jobs.plan([str(folder / "in"), str(folder / "single.wav")], str(folder / "one.flac"), **options)
    (folder / "album.flac").mkdir()
    (job,) = file_jobs.plan([str(folder / "single.wav")], str(folder / "album.flac"), **options)
    assert job.target == folder / "album.flac" / "single.wav"
    with pytest.raises(DataError, match=r"notes.txt is a file; give a folder"):
        _plan(folder, "single.wav", output="in/notes.txt")


def test_a_failure_names_its_file_and_the_others_continue(folder, capsys):
    def process(source, target, progress):
        raise DataError("the audio has 6 channels")

    with pytest.raises(DataError, match="2 of 2 files failed"):
        file_jobs.run(_plan(folder, "in"), process)
    said = capsys.readouterr()
    assert "a.wav: the audio has 6 channels" in said.out + said.err


def test_names_that_are_no_text_do_not_stop_the_rest(folder, capsys):
    try:
        (folder / "in" / os.fsdecode(b"\xff.wav")).write_text("x")
    except OSError:
        pytest.skip("this file system takes names of valid text alone")
    jobs = _plan(folder, "in")
    file_jobs.run(jobs, _copy)
    assert "3 written" in capsys.readouterr().out
    with pytest.raises(DataError, match=r"\\udcff.wav would overwrite itself"):
        file_jobs.plan([str(jobs[-1].source)], str(folder / "in"), extensions=(".wav",), suffix=".wav")


def test_files_of_one_name_get_names_of_their_own(folder, capsys):
    (folder / "in" / "a.flac").write_text("another")
    (folder / "other").mkdir()
    (folder / "other" / "a.flac").write_text("a third")
    made = sorted(str(job.target.relative_to(folder)) for job in _plan(folder, "in"))
    assert made == ["out/a.flac.wav", "out/a.wav.wav", "out/deeper/b.wav"]
    # A file whose output is still ambiguous fails alone.
    jobs = _plan(folder, "in", "other")
    with pytest.raises(DataError, match="1 of 4 files failed"):
        file_jobs.run(jobs, _copy)
    said = capsys.readouterr()
    assert "other/a.flac: " in said.out + said.err
    assert "in/a.flac has the same output" in said.out + said.err
    assert (folder / "out" / "a.flac.wav").read_text() == "another"


def test_leftovers_of_a_killed_program_are_removed(folder):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (folder / "out").mkdir()
    old, new, running = (
        folder / "out" / f".{name}.{pid}.tmp.wav"
        for name, pid in (("old", ended.pid), ("new", ended.pid), ("running", os.getpid()))
    )
    for path in (old, new, running):
        path.touch()
    for path in (old, running):
        os.utime(path, (time.time() - 100, time.time() - 100))
    file_jobs.run(_plan(folder, "in"), _copy)
    assert not old.exists()
    assert new.exists()
    assert running.exists()

    def takes_a_minute(source, target, progress):
        os.utime(new, (time.time() - 100, time.time() - 100))

    file_jobs.run(_plan(folder, "in"), takes_a_minute, overwrite=True)
    assert not new.exists()
    assert running.exists()


def test_impossible_plans_are_refused(folder):
    with pytest.raises(DataError, match="nothing: there is no such file"):
        _plan(folder, "nothing")
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty contains no .wav, .flac files"):
        _plan(folder, "empty")
    with pytest.raises(DataError, match=r"single.wav would overwrite itself"):
        _plan(folder, "single.wav", output=".")
