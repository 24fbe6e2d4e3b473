import re

import numpy as np
import pytest

from audiovae_jax.evaluation import report
from audiovae_jax.evaluation.summary import summarize

RATE = 16000


@pytest.fixture
def written(tmp_path):
    """Write the page of two systems on three files, and return its text."""

    def write(systems=("ours", "<i>codec"), **options):
        rows = [
            {"file": f"{name}.wav", "system": system, "seconds": 20.0, "si_sdr_db": 10.0 * i + j, "mse": 0.5 / (i + 1)}
            for j, name in enumerate("abc")
            for i, system in enumerate(systems)
        ]
        audio = np.random.default_rng(0).uniform(-0.5, 0.5, (RATE, 1)).astype(np.float32)
        entry = report.Listening("Worst 1", "a.wav", rows[0], 1.0, RATE, audio, {s: 0.9 * audio for s in systems})
        given = {"skipped": [], "notes": [], "listening": [entry]} | options
        report.write(
            tmp_path / "report.html",
            title="Evaluation on songs",
            summary=summarize(rows, list(systems)),
            descriptions={system: f"what {system} is" for system in systems},
            rows=rows,
            **given,
        )
        return (tmp_path / "report.html").read_text()

    return write


def test_the_summary_compares_the_first_system_with_the_best(written):
    text = written()
    lead = re.search('<p class="lead">(.*?)</p>', text)[1]
    assert lead == (
        "ours reaches an SI-SDR of 1.00 dB on average over 3 files (1.0 min). Of 2 systems, &lt;i&gt;codec has the "
        "highest: 11.00 dB."
    )
    assert "Of 2" not in re.search('<p class="lead">(.*?)</p>', written(("ours",)))[1]
    assert re.search("SI-SDR.{,40}<b>1.00</b>", text)
    assert "<i>" not in text


def test_systems_are_rows_of_one_table_with_the_best_in_bold(written):
    table = written().split("<h2>Systems</h2>")[1].split("</table>")[0]
    rows = [re.findall("<td[^>]*>(.*?)</td>", row) for row in re.findall("<tr>(.*?)</tr>", table)][1:]
    assert [row[0].split("<small>")[0] for row in rows] == ["ours", "&lt;i&gt;codec"]
    assert "what ours is" in rows[0][0]
    assert "<b>" not in rows[0][1]
    assert rows[1][1].startswith("<b>11.00</b>")


def test_a_reconstruction_and_its_difference_are_a_pair_beside_one_original(written):
    text = written()
    (section,) = re.findall("<section.*?</section>", text, re.DOTALL)
    original, *pairs = section.split('<div class="pair">')
    assert original.count("<audio") == 1
    assert [re.findall("<figcaption>(.*?)</figcaption>", pair) for pair in pairs] == [
        [f"{system}: reconstruction", f"{system}: difference"] for system in ("ours", "&lt;i&gt;codec")
    ]
    assert [pair.count("<audio") for pair in pairs] == [2, 2]


def test_the_page_names_no_folder_of_the_machine(written):
    text = written(
        skipped=[("/home/me/songs/bad.wav", "/home/me/songs/bad.wav: not audio; see s3://bucket/songs/x.wav")],
        notes=["the model at /mnt/disk/models/one has 3 channels, 1/3 of '/tmp/x y/two'"],
    )
    for folder in ("/home", "/mnt", "/tmp"):
        assert folder not in text
    assert "bad.wav: bad.wav: not audio; see s3://bucket/songs/x.wav" in text
    assert "the model at one has 3 channels, 1/3 of " in text
