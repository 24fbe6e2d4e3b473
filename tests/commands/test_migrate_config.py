import old_configs
import pytest

from audiovae_jax.commands import bundled_configs, training
from audiovae_jax.errors import ConfigError


@pytest.fixture
def migrate_config(tmp_path, monkeypatch):
    """Run the command in a folder that contains the old tree, with flags as keywords."""
    monkeypatch.chdir(tmp_path)
    bundled_configs.offer()
    old_configs.write(tmp_path / "old")

    class Flags:
        FLAGS = None

    def run(*given, output=None, overwrite=False):
        Flags.FLAGS = type("Values", (), {"out": output, "overwrite": overwrite})
        monkeypatch.setattr(training, "flags", Flags)
        training._migrate(*given)

    return run


def test_an_old_tree_is_described_and_written(migrate_config, tmp_path, capsys):
    migrate_config("old/train.yaml", "trainer.max_epochs=5", "~logger")
    told = capsys.readouterr().out
    assert "read: 15\n  old/train.yaml" in told
    assert "config.num_steps = 5000" in told
    assert "config.logging" not in told
    assert not (tmp_path / "mine.py").exists()
    migrate_config("old/train.yaml", output="mine.py")
    assert "written to mine.py" in capsys.readouterr().out
    before = (tmp_path / "mine.py").read_text()
    with pytest.raises(ConfigError, match="mine.py exists; give --overwrite to replace it"):
        migrate_config("old/train.yaml", "seed=8", output="mine.py")
    assert (tmp_path / "mine.py").read_text() == before
    migrate_config("old/train.yaml", "seed=8", output="mine.py", overwrite=True)
    assert "config.seed = 8" in (tmp_path / "mine.py").read_text()


@pytest.mark.parametrize(
    ("given", "output", "says"),
    [
        (("seed=3",), None, "give the old config as the first argument"),
        (("nowhere.yaml",), None, "nowhere.yaml cannot be read"),
        (("old/train.yaml",), "mine.yaml", "must end in .py"),
        (("old/train.yaml", "model=audio_va"), None, "did you mean 'audio_vae'"),
    ],
)
def test_invalid_arguments_are_errors(migrate_config, given, output, says):
    with pytest.raises(ConfigError, match=says):
        migrate_config(*given, output=output)
