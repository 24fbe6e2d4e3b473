import pytest

from audiovae_jax.config import resolve
from audiovae_jax.errors import ConfigError


def test_a_function_gets_its_options_bound_and_a_class_is_built():
    loss = resolve.build({"_target_": "audiovae_jax.losses.waveform_l1", "weight": 2.0}, "x", ignore=("weight",))
    assert loss.func.__name__ == "waveform_l1"
    section = {"_target_": "audiovae_jax.AdversarialLossCalculator", "warmup_steps": 7}
    assert resolve.build(section, "x").warmup_steps == 7


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({}, "losses.a has no _target_"),
        ({"_target_": "waveform_l1"}, "must be a dotted path"),
        ({"_target_": "no_such_package.Thing"}, "there is no module 'no_such_package'"),
        ({"_target_": "audiovae_jax.losses.waveform_l2"}, "has no 'waveform_l2'; did you mean 'waveform_l1'"),
        ({"_target_": "audiovae_jax.losses.mel"}, "is a module, not a class or function"),
        (
            {"_target_": "audiovae_jax.losses.multi_scale_mel", "n_mel": 3},
            r"losses.a.n_mel: .* has no argument 'n_mel'; did you mean 'n_mels'",
        ),
        (
            {"_target_": "audiovae_jax.losses.sum_and_difference_stft", "fft_size": (64,)},
            "has no argument 'fft_size'; did you mean 'fft_sizes'",
        ),
        ({"_target_": "audiovae_jax.AdversarialLossCalculator", "warmup_steps": -1}, "rejects its arguments: warmup"),
    ],
)
def test_errors_name_the_problem(section, message):
    with pytest.raises(ConfigError, match=message):
        resolve.build(section, "losses.a")


def test_a_module_that_fails_to_import_is_distinguished_from_a_missing_one(tmp_path, monkeypatch):
    (tmp_path / "broken_part.py").write_text("import a_missing_dependency\n")
    (tmp_path / "raising_part.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="importing 'broken_part' failed: No module named 'a_missing_dependency'"):
        resolve.resolve("broken_part.X", "here")
    with pytest.raises(ConfigError, match="importing 'raising_part' failed: ZeroDivisionError"):
        resolve.resolve("raising_part.X", "here")
