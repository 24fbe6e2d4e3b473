import re

import numpy as np

from audiovae_jax.run.tracking import curves


def _points(svg):
    return [
        np.array([pair.split(",") for pair in points.split()], float)
        for points in re.findall(r'points="([^"]*)"', svg)
    ]  # fmt: skip


def test_a_line_goes_where_its_numbers_are():
    (points,) = _points(curves.chart("x", {"a": ([0, 5, 10], [0.0, 1.0, 2.0])}))
    assert np.allclose(np.diff(points, axis=0)[0], np.diff(points, axis=0)[1], atol=0.15)
    assert points[0, 1] > points[-1, 1]  # greater is higher
    assert points[0, 0] < points[-1, 0]


def test_a_peak_in_a_long_curve_stays():
    values = np.zeros(100_000)
    values[54_321] = 7.0
    (points,) = _points(curves.chart("x", {"a": (np.arange(100_000), values)}))
    assert len(points) <= 402
    assert points[:, 1].max() - points[:, 1].min() > 150


def test_values_of_many_sizes_are_drawn_by_their_logarithm():
    (points,) = _points(curves.chart("x", {"a": ([0, 1, 2], [1.0, 10.0, 100.0])}))
    assert np.allclose(np.diff(points[:, 1])[0], np.diff(points[:, 1])[1], atol=0.15)


def test_one_number_none_and_those_that_are_none():
    assert "<circle" in curves.chart("x", {"a": ([3], [0.0])})
    assert "no number" in curves.chart("x", {"a": ([], [])})
    (points,) = _points(curves.chart("x", {"a": ([0, 1, 2], [1.0, np.nan, np.inf]), "b": ([0, 2], [1.0, 1.0])}))[1:]
    assert len(points) == 2
    assert "&lt;b&gt;" in curves.chart("<b>", {"<b>": ([0], [1.0])})
