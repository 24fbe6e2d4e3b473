import jax
import numpy as np
import pytest

from audiovae_jax.errors import CheckpointError
from audiovae_jax.inference import inspection
from audiovae_jax.persistence import averaging, saved_model


def test_the_parameters_are_the_mean_and_the_steps_are_in_the_metadata(trained_run, tmp_path):
    workdir = trained_run[0]
    assert averaging.average_checkpoints(workdir, tmp_path / "averaged", last=2) == [1, 2]
    averaged = saved_model.open_model(tmp_path / "averaged", training=True)
    assert (averaged.metadata, averaged.global_step, averaged.training) == ({"averaged_steps": [1, 2]}, 2, {})
    assert (averaged.sample_rate, averaged.discriminator) == (44100, None)
    assert inspection.inspect_model(tmp_path / "averaged")["metadata"] == {"averaged_steps": [1, 2]}
    first, second = (saved_model.open_model(workdir, step=step).variables for step in (1, 2))
    params = (each["params"] for each in (averaged.variables, first, second))
    for mean, a, b in zip(*map(jax.tree.leaves, params), strict=True):
        assert mean.dtype == np.float32
        np.testing.assert_array_equal(mean, ((a.astype(np.float64) + b) / 2).astype(np.float32))
    assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, (first["params"], second["params"])), strict=True))
    jax.tree.map(np.testing.assert_array_equal, averaged.variables["latent_statistics"], second["latent_statistics"])
    assert averaging.average_checkpoints(workdir, tmp_path / "averaged", steps=[2, 1]) == [1, 2]


def test_what_cannot_be_averaged_is_refused(trained_run, tmp_path):
    with pytest.raises(CheckpointError, match="has no checkpoint 7; it has 1, 2"):
        averaging.average_checkpoints(trained_run[0], tmp_path / "averaged", steps=[1, 7])
    with pytest.raises(CheckpointError, match="there are 1 checkpoints to average; it has 1, 2"):
        averaging.average_checkpoints(trained_run[0], tmp_path / "averaged", last=1)
    with pytest.raises(CheckpointError, match="no such file or folder"):
        averaging.average_checkpoints(tmp_path / "nothing", tmp_path / "averaged")
    assert not (tmp_path / "averaged").exists()
