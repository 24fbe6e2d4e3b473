import pytest

from audiovae_jax.commands import bundled_configs, training
from audiovae_jax.errors import ConfigError, DataError
from audiovae_jax.run.tracking.json_lines import JsonLines


@pytest.fixture
def report(tmp_path, monkeypatch):
    """Run the command in a folder with two runs, with flags as keywords."""
    monkeypatch.chdir(tmp_path)
    bundled_configs.offer()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        lines = JsonLines(tmp_path / name, 0, pytest.fail)
        lines.scalars({"val/total_loss": 1.0}, 7)
        lines.text("warning", f"{name} is odd", 7)
        lines.close(True)

    class Flags:
        FLAGS = None

    def run(*workdirs, out=None):
        Flags.FLAGS = type("Values", (), {"out": out, "sample_steps": 6})
        monkeypatch.setattr(training, "flags", Flags)
        training._report(*workdirs)

    return run


def test_one_page_of_two_runs(report, tmp_path, capsys):
    report("one", "two", out="deeper/page.html")
    assert "two is odd" in (tmp_path / "deeper" / "page.html").read_text()
    said = capsys.readouterr().out
    assert "one: step 7, 1 warnings\n  step 7: one is odd" in said
    assert "written to deeper/page.html" in said
    report("one")
    assert (tmp_path / "one" / "report.html").is_file()


def test_invalid_arguments_are_errors(report):
    with pytest.raises(ConfigError, match="must end in .html"):
        report("one", out="page.pdf")
    with pytest.raises(DataError, match="three does not exist"):
        report("one", "three")
    with pytest.raises(ConfigError, match="copy metrics.jsonl, sessions.json, config.json and samples/"):
        report("s3://bucket/run")
    with pytest.raises(DataError, match="was not written"):
        report("one", out="one/metrics.jsonl/page.html")
