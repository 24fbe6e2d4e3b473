import pickle

import jax.numpy as jnp
import numpy as np
import pytest

from audiovae_jax.errors import CheckpointError, ConfigError, DataError, naming, whole_number


@pytest.mark.parametrize(
    "value", [48000, 48000.0, np.int64(48000), np.float32(48000), jnp.int32(48000), np.array(48000)]
)
def test_integers_of_any_type_are_accepted(value):
    number = whole_number(value, "rate", DataError)
    assert (number, type(number)) == (48000, int)


@pytest.mark.parametrize("value", [44100.5, "44100", None, True, np.True_, float("nan"), float("inf"), [1], 1j])
def test_others_are_refused_by_name(value):
    with pytest.raises(DataError, match="rate=.* must be a whole number"):
        whole_number(value, "rate", DataError)


def test_the_range_is_kept():
    assert whole_number(0, "count", DataError, least=0) == 0
    with pytest.raises(DataError, match="count=0 must be a whole number from 1 to 9"):
        whole_number(0, "count", DataError, most=9)


def test_a_message_is_composed_of_its_fields():
    assert str(ConfigError("config.batch_size=5 is odd")) == "config.batch_size=5 is odd"
    error = CheckpointError(" is damaged", path="run/2", detail="OSError: cut")
    assert str(error) == "run/2 is damaged: OSError: cut"
    error.key = "config.init_from"
    for same in (error, pickle.loads(pickle.dumps(error))):
        assert str(same) == "config.init_from=run/2 is damaged: OSError: cut"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (CheckpointError("it is damaged"), "config.init_from=run: it is damaged"),
        (CheckpointError(" is damaged", path="run/2"), "config.init_from=run/2 is damaged"),
    ],
)
def test_a_path_is_named_once(error, message):
    with pytest.raises(CheckpointError) as raised, naming("run", "config.init_from"), naming("run"):
        raise error
    assert str(raised.value) == message
