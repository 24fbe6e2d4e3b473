"""The commands `evaluate` and `probe_latents`."""

import json
from pathlib import Path

import command_line
import pytest
from absl import flags
from conftest import SMALL_MODEL, random_variables

from audiovae_jax import AudioVAE, save_model
from audiovae_jax.commands import judging
from audiovae_jax.errors import ConfigError, DataError


@pytest.fixture
def values(monkeypatch):
    """The command's flags at their defaults, apart from those of other tests."""
    own = flags.FlagValues()
    monkeypatch.setattr(flags, "FLAGS", own)
    for define in ("string", "integer", "float", "bool", "enum", "list"):
        plain = getattr(flags, f"DEFINE_{define}")

        def into(*args, plain=plain, **options):
            return plain(*args, flag_values=own, **options)

        monkeypatch.setattr(flags, f"DEFINE_{define}", into)
    judging._define()
    own.mark_as_parsed()
    return own


@pytest.mark.slow
def test_two_models_beside_a_codec_on_a_folder_with_a_bad_file(audio_folder, tmp_path):
    model = AudioVAE(**SMALL_MODEL)
    for seed, name in enumerate(("one", "two")):
        save_model(model, random_variables(model, seed), tmp_path / name, sample_rate=44100)
    (audio_folder / "bad.wav").write_bytes(b"nonsense")
    given = [
        tmp_path / "one",
        "other=two",
        audio_folder,
        "--out=judged",
        "--baselines=opus64",
        "--limit=2",
    ]
    done = command_line.run("evaluate", *given, cwd=tmp_path)
    assert "Traceback" not in done.stderr
    assert done.returncode == 0, done.stderr
    assert "2 files evaluated, 1 skipped; see judged/report.html" in done.stdout
    found = json.loads((tmp_path / "judged" / "summary.json").read_text())
    assert [name for name in found["systems"] if not name.startswith("opus")] == ["one", "other"]
    assert found["skipped"][0][0].endswith("bad.wav")
    assert found["systems"]["one"]["columns"]["bits_per_second"]["mean"] > 0
    page = (tmp_path / "judged" / "report.html").read_text()
    assert "Evaluation on audio" in page
    assert str(tmp_path) not in page


def test_a_side_of_the_split_a_file_and_what_is_neither(audio_folder, tmp_path, values):
    out = tmp_path / "out"
    sides = {}
    for side in ("all", "train", "validation"):
        values.side = side
        sides[side] = [track.key for track in judging._tracks(str(audio_folder), out)[0]]
    assert sorted(sides["train"] + sides["validation"]) == sorted(sides["all"]) == ["a.wav", "c.ogg", "deeper/b.flac"]
    assert len(sides["validation"]) == 1
    ((track,), _, _) = judging._tracks(str(audio_folder / "a.wav"), out)
    assert (track.key, track.audio.channels) == ("a.wav", 2)
    with pytest.raises(DataError, match="there is no such folder"):
        judging._tracks(str(tmp_path / "nothing"), out)
    (tmp_path / "text.wav").write_text("no sound")
    with pytest.raises(DataError, match="text.wav: not audio that can be read"):
        judging._tracks(str(tmp_path / "text.wav"), out)


def test_mistakes_are_errors_before_the_work(tmp_path, values):
    values.out = str(tmp_path / "file")
    Path(values.out).touch()
    with pytest.raises(ConfigError, match="--out=.* is a file"):
        judging._evaluate("model", "songs")
    values.out = str(tmp_path / "out")
    with pytest.raises(ConfigError, match="two models have the name 'm'"):
        judging._evaluate("a/m", "b/m", "songs")
    values.embedding = "nowhere:embed"
    with pytest.raises(ConfigError, match="nowhere"):
        judging._evaluate("m", "songs")
    values.embedding, values.baselines = None, ["opus24"]
    with pytest.raises(ConfigError, match="a model and a baseline both have the name 'opus24'"):
        judging._evaluate("opus24=m", "songs")


@pytest.mark.slow
def test_two_models_are_probed_on_the_same_files(audio_folder, tmp_path):
    for seed, strides in enumerate([(2, 4), (4, 4)]):
        model = AudioVAE(**SMALL_MODEL | {"strides": strides})
        save_model(model, random_variables(model, seed), tmp_path / str(seed), sample_rate=44100)
    flags = ("--steps=3", "--seconds=0.2", "--json=probe.json")
    done = command_line.run("probe_latents", "fine=0", "coarse=1", audio_folder, *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "probe.json").read_text())
    frames = {name: (result["crop"]["tokens"], result["crop"]["frames_per_token"]) for name, result in found.items()}
    assert frames == {"fine": (10, 110), "coarse": (10, 55)}
    lines = done.stdout.splitlines()
    for line, (name, result) in zip(lines[-2:], found.items(), strict=True):
        assert line.split()[:2] == [name, f"{result['relative_loss']:.4f}"]
    for given, reason in ((tmp_path / "none", "there is no such folder"), (audio_folder / "deeper", "has one track")):
        done = command_line.run("probe_latents", "0", given, cwd=tmp_path)
        assert (done.returncode, "Traceback" in done.stderr) == (1, False)
        assert reason in done.stderr.splitlines()[-1]
