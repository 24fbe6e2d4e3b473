"""Copies of what is left of damaged files."""

import numpy as np
import soundfile

from audiovae_jax.data.survey import repair


def test_damaged_files_are_copied_up_to_their_damage(tmp_path):
    root, out = tmp_path / "songs", tmp_path / "fixed"
    (root / "deep").mkdir(parents=True)
    audio = np.random.default_rng(0).uniform(-0.5, 0.5, (24000, 2)).astype(np.float32)
    cut, page = root / "deep" / "cut.flac", root / "page.wav"
    soundfile.write(cut, audio, 8000, subtype="PCM_24")
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    page.write_bytes(b"<html>404</html>")
    soundfile.write(root / "short.wav", audio[:10], 8000)
    before = cut.read_bytes()
    others = [(page, "not audio"), (root / "gone.wav", "No such file"), (root / "short.wav", "10 samples are shorter")]
    skipped = [(str(path), reason) for path, reason in [(cut, "truncated"), *others]]
    fixed, *unfixed = repair.write(skipped, [str(tmp_path / "other"), str(root)], out)
    assert fixed[:2] == (str(cut), out / "deep" / "cut.flac.wav")
    made, rate = soundfile.read(fixed[1], dtype="float32")
    assert rate == 8000
    assert 8000 < len(made) < 16000
    np.testing.assert_allclose(made, audio[: len(made)], atol=1e-6)
    assert [(name, copy) for name, copy, _ in unfixed] == [(str(path), None) for path, _ in others]
    assert "an HTML page" in unfixed[0][2]
    assert cut.read_bytes() == before
    assert sorted(path.name for path in out.rglob("*.*")) == ["cut.flac.wav"]
