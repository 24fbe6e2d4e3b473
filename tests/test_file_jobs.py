"""Many files: structure kept, what is there skipped, one bad file not in the way of the rest."""

import pytest

from audiovae_jax import file_jobs
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


def test_what_is_there_is_skipped_unless_told(folder, capsys):
    jobs = _plan(folder, "in")
    file_jobs.run(jobs[:1], _copy)
    file_jobs.run(jobs, _copy)
    assert "1 made, 1 there already and skipped, 0 failed" in capsys.readouterr().out
    jobs[0].target.write_text("old")
    file_jobs.run(jobs, _copy, overwrite=True)
    assert jobs[0].target.read_text() == "in/a.wav"


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


def test_impossible_plans_are_refused(folder):
    with pytest.raises(DataError, match="nothing: there is no such file"):
        _plan(folder, "nothing")
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty holds no files of the kinds .wav, .flac"):
        _plan(folder, "empty")
    (folder / "in" / "a.flac").touch()
    with pytest.raises(DataError, match=r"a.flac and .*a.wav would both make .*out/a.wav"):
        _plan(folder, "in")
    with pytest.raises(DataError, match=r"single.wav would overwrite itself"):
        _plan(folder, "single.wav", output=".")
