import re

import numpy as np

from audiovae_jax.run.tracking import curves


def _points(svg):
    """Return the points of every curve, in the order of the series."""
    return [
        np.array(re.findall(r"[ML] ([\d.-]+) ([\d.-]+)", path), float)
        for path in re.findall(r'd="([^"]*)" style="fill: none; stroke: var\(--series', svg)
    ]


def test_a_line_goes_where_its_numbers_are():
    (points,) = _points(curves.chart("x", {"a": ([0, 5, 10], [0.0, 1.0, 2.5])}))
    assert np.allclose(np.diff(points[:, 0])[0], np.diff(points[:, 0])[1], atol=0.15)
    assert np.allclose(1.5 * np.diff(points[:, 1])[0], np.diff(points[:, 1])[1], atol=0.15)
    assert points[0, 1] > points[-1, 1]  # greater is higher
    assert points[0, 0] < points[-1, 0]


def test_a_peak_in_a_long_curve_stays():
    values = np.zeros(100_000)
    values[54_321] = 7.0
    (points,) = _points(curves.chart("x", {"a": (np.arange(100_000), values)}))
    assert len(points) <= 402
    assert points[:, 1].max() - points[:, 1].min() > 100  # most of the drawing's height


def test_values_of_many_sizes_are_drawn_by_their_logarithm():
    (points,) = _points(curves.chart("x", {"a": ([0, 1, 2], [1.0, 10.0, 100.0])}))
    assert np.allclose(np.diff(points[:, 1])[0], np.diff(points[:, 1])[1], atol=0.15)


def _ticks(chart):
    """Return the numbers beside the vertical axis, which end where the drawing begins."""
    return [float(text) for text in re.findall(r"text-anchor: end[^>]*>([^<]*)<", chart.replace("\N{MINUS SIGN}", "-"))]


def test_a_chart_names_its_scale_and_its_ticks_are_round():
    logarithmic = curves.chart("x", {"a": ([0, 1, 2], [0.9, 10.0, 110.0])})
    linear = curves.chart("x", {"a": ([0, 1, 2], [-0.9, 1.0, 2.1])})
    assert "log scale" in logarithmic
    assert "linear scale" not in logarithmic
    assert "linear scale" in linear
    assert "log scale" not in linear
    assert {1.0, 10.0, 100.0} <= set(_ticks(logarithmic))
    assert np.allclose(np.diff(_ticks(linear)), np.diff(_ticks(linear))[0])
    assert 0.0 in _ticks(linear)
    assert max(_ticks(curves.chart("x", {"a": ([0, 1], [0.0, 6e-6])}))) == 6e-6


def test_ticks_cover_all_runs_and_a_run_may_lack_a_metric():
    steps, wide = [0, 1, 2], [0.9, 10.0, 110.0]
    alone = _ticks(curves.chart("x", {"a": (steps, wide)}))
    assert _ticks(curves.chart("x", {"a": (steps, wide), "b": (steps, [1.0, 1.1, 1.2])})) == alone
    missing = curves.chart("x", {"a": (steps, wide), "b": ((), ())})
    assert (_ticks(missing), len(_points(missing))) == (alone, 1)


def test_one_number_none_and_those_that_are_none():
    assert "<circle" in curves.chart("x", {"a": ([3], [0.0])})
    assert "no values" in curves.chart("x", {"a": ([], [])})
    (points,) = _points(curves.chart("x", {"a": ([0, 1, 2], [1.0, np.nan, np.inf]), "b": ([0, 2], [1.0, 1.0])}))
    assert len(points) == 2
    assert "&lt;b&gt;" in curves.chart("<b>", {"<b>": ([0], [1.0])})
