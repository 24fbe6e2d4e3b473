"""Early stopping."""

import math

import ml_collections

from audiovae_jax.run.validation import EarlyStopping


def _section(**changes):
    return ml_collections.ConfigDict({"metric": "mel", "patience": 2, "min_delta": 0.0, **changes})


def _validations_until_it_stops(values, section):
    """Return the index of the last validation; the state is restored from the saved position after each."""
    position = {}
    for step, value in enumerate(values):
        stopping = EarlyStopping(section, position)
        stopping.see({section.metric: value}, step)
        if stopping.reason():
            return step
        position = stopping.position()
    return None


def test_a_run_ends_after_so_many_validations_without_an_improvement():
    values = [5.0, 4.0, 4.5, 3.9, 3.95, 3.85, 4.0, math.nan]
    assert _validations_until_it_stops(values, _section()) == 7
    assert _validations_until_it_stops(values, _section(min_delta=0.2)) == 3
    assert _validations_until_it_stops(values, _section(patience=3)) is None
    assert _validations_until_it_stops([-value for value in values], _section(metric="si_sdr_db")) == 7
    assert _validations_until_it_stops(values, _section(patience=0)) is None


def test_another_metric_starts_again():
    stopping = EarlyStopping(_section(), {})
    for step in range(3):
        stopping.see({"mel": 1.0}, step)
    assert stopping.reason() == "stopping early: val/mel has not improved in 2 validations (best 1.0000, at step 0)"
    assert EarlyStopping(_section(), stopping.position()).reason() == stopping.reason()
    assert EarlyStopping(_section(metric="stft"), stopping.position()).reason() is None
    assert EarlyStopping(_section(patience=0), stopping.position()).position() == {}
