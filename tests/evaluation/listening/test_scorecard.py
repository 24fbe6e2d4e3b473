"""Metrics in groups: each appears once, with its better direction."""

import collections
import math
import re

import numpy as np
import pytest

from audiovae_jax.data.audio import stream
from audiovae_jax.evaluation import metrics
from audiovae_jax.evaluation.latents import LatentStatistics
from audiovae_jax.evaluation.listening import scorecard
from audiovae_jax.evaluation.metrics import COLUMNS
from audiovae_jax.models.audio_vae import Posterior


def test_every_metric_of_the_page_has_one_group(thread_pool):
    audio = np.random.default_rng(0).standard_normal((8000, 2)).astype(np.float32) * 0.1
    columns, _ = metrics.measure(stream.of_array(audio, 8000), stream.of_array(audio * 0.9, 8000), pool=thread_pool)
    statistics = LatentStatistics(3)
    statistics.add(Posterior(*np.random.default_rng(1).standard_normal((3, 50, 1, 3)).astype(np.float32)))
    columns |= statistics.columns(1.0)
    counts = collections.Counter(name for names in scorecard.GROUPS.values() for name in names)
    assert set(columns) == set(counts)
    assert set(counts.values()) == {1}
    assert set(scorecard.MAIN) <= set(counts)


@pytest.fixture
def thread_pool():
    import concurrent.futures

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        yield pool


def test_three_metrics_are_large_and_arrows_show_the_better_direction():
    page = scorecard.scorecard({"si_sdr_db": 12.5, "audiotools_mel": 0.75, "auraloss_stft": 1.25, "side_snr_db": None,
                                "loudness_lufs": -14.0, "bandwidth_kept": 1.0, "mid_snr_db": math.inf})  # fmt: skip
    main, groups = page.split('<div class="groups">')
    assert re.findall(r"<strong>(.*?)</strong>", main) == ["12.50", "0.75", "1.25"]
    assert [main.count(text) for text in ("↑ higher is better</span>", "↓ lower is better</span>")] == [1, 2]
    assert re.findall(r"<h4>(.*?)</h4>", groups) == ["Fidelity", "Spectrum", "Stereo", "Loudness"]
    lines = dict(re.findall(r"<span>([^<]*)(?: <i.*?)?</span><span>(.*?)</span>", groups))
    assert lines["mid SNR (dB)"] == "∞"
    assert COLUMNS["side_snr_db"].label not in page
    assert lines["loudness of the original (LUFS)"] == "-14"
    arrows = dict(re.findall(r"<span>([^<]*) <i [^>]*>(.)</i>", groups))
    assert arrows == {"SI-SDR (dB)": "↑", "STFT, auraloss": "↓", "mel, audiotools": "↓", "mid SNR (dB)": "↑"}


def test_nothing_measured_is_no_scorecard_of_nothing():
    assert "<h4>" not in scorecard.scorecard({"si_sdr_db": None})
