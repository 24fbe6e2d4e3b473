"""A short fuzz test of saved files; `python tests/fuzz_saved_files.py` runs a longer one."""

import fuzz_saved_files as fuzz
import pytest


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "read"),
    [
        (fuzz.make_workdir, fuzz.read_to_go_on),
        (fuzz.make_workdir, fuzz.read_to_use),
        (fuzz.make_saved_model, fuzz.read_saved_model),
    ],
)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax's own threads
def test_damage_to_any_file_is_refused_or_without_consequence(tmp_path, make, read):
    make(tmp_path / "files")
    for what, counts in fuzz.fuzz(tmp_path / "files", read, flips=1, cuts=1).items():
        assert not counts.keys() - {"refused", "unchanged", "older"}, what
        if make is fuzz.make_workdir:
            assert not counts["refused"], f"{what}: the other checkpoint was not found"
