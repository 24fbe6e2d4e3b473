"""The flags of the commands that write audio."""

import re
import types

import numpy as np
import pytest
import soundfile
from absl import flags

from audiovae_jax.commands import codec
from audiovae_jax.errors import ConfigError, DataError
from audiovae_jax.inference.codec import Codec


class _Flags(types.SimpleNamespace):
    """Flags as given on the command line."""

    def __getitem__(self, name):
        return types.SimpleNamespace(value=getattr(self, name), present=False)


@pytest.fixture
def reconstruct(tmp_path, monkeypatch):
    """Runs `reconstruct` on a loud and a soft file with a model that changes nothing."""
    (tmp_path / "songs").mkdir()
    tone = np.sin(np.arange(8000) / 8)[:, None]
    for name, peak in (("loud", 2.0), ("soft", 0.5)):
        soundfile.write(tmp_path / "songs" / f"{name}.wav", peak * tone, 8000, subtype="FLOAT")
    monkeypatch.setattr(Codec, "reconstruct_stream", lambda self, source, **options: source)

    def run(kind, peak=None, load=lambda model: object.__new__(Codec), allow_truncated=False):
        monkeypatch.setattr(codec, "load", load)
        values = _Flags(format=kind, peak=peak, mix=False, overwrite=True, allow_truncated=allow_truncated)
        monkeypatch.setattr(flags, "FLAGS", values)
        codec.RECONSTRUCT.main("model", str(tmp_path / "songs"), str(tmp_path / "out"))
        return {path.stem: soundfile.read(path)[0] for path in (tmp_path / "out").glob(f"*.{kind}")}

    return run


@pytest.mark.parametrize(
    ("kind", "peak", "loudest", "said"),
    [
        ("wav", None, 2.0, None),
        ("wav", "keep", 2.0, None),
        ("wav", "clip", 1.0, "which were clipped; --peak=scale scales the whole file down"),
        ("wav", "scale", 1.0, "the whole file was scaled down to full scale"),
        ("flac", None, 1.0, "which were clipped; --peak=scale scales the whole file down"),
        ("flac", "scale", 1.0, "the whole file was scaled down to full scale"),
    ],
)
def test_audio_above_full_scale_is_reported_by_file(reconstruct, capsys, kind, peak, loudest, said):
    made = reconstruct(kind, peak)
    assert np.abs(made["loud"]).max() == pytest.approx(loudest, abs=1e-4)
    assert np.abs(made["soft"]).max() == pytest.approx(0.5, abs=1e-4)
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == (said is not None)
    if said is not None:
        assert f"out/loud.{kind}: its peak was +6.0 dBFS, with 66.6% of the samples above full scale" in warnings[0]
        assert said in warnings[0]


def test_integers_cannot_keep_what_is_above_full_scale(reconstruct):
    def load(model):
        raise AssertionError("the model is read before the flags are checked")

    with pytest.raises(ConfigError, match=r"--peak=keep needs a format of floats: make .*out/loud.flac a .wav"):
        reconstruct("flac", "keep", load)


def test_a_truncated_file_is_used_up_to_its_damage_if_allowed(reconstruct, tmp_path, capsys):
    path = tmp_path / "songs" / "cut.flac"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, (24000, 1)), 8000)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match="1 of 3 files failed"):
        reconstruct("wav")
    assert re.search(r"cut\.flac: truncated or damaged: audio ends at 1\.\d\d s of 3\.00 s", capsys.readouterr().out)
    made = reconstruct("wav", allow_truncated=True)
    said = capsys.readouterr().out
    assert re.search(r"^warning: .*cut\.flac: truncated or damaged: .*; 1\.\d\d s are read$", said, re.MULTILINE)
    assert 8000 < len(made["cut"]) < 16000
