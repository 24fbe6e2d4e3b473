import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest

from audiovae_jax.commands import huge_pages

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_a_process_restarts_once_with_its_arguments(tmp_path):
    if not huge_pages._can_ask():
        pytest.skip("this system has no large pages to ask for")
    program = tmp_path / "program.py"
    program.write_text(
        "import os, sys\n"
        f"sys.path.append({str(ROOT)!r})\n"
        "from audiovae_jax.commands import huge_pages\n"
        "print('started', flush=True)\n"
        "huge_pages.restart()\n"
        "print(os.environ['GLIBC_TUNABLES'], sys.argv[1:], sys.flags.utf8_mode)\n"
    )
    env = {**os.environ, "GLIBC_TUNABLES": "glibc.malloc.perturb=0"}
    done = subprocess.run(
        [sys.executable, "-X", "utf8", str(program), "--a=b c", "d"],
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == [
        "started",
        "started",
        "glibc.malloc.perturb=0:glibc.malloc.hugetlb=1 ['--a=b c', 'd'] 1",
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "typed"), [(["-c", "{}"], ""), (["-"], "{}"), ([], "{}"), (["-i", "-c", "{}"], "")]
)
def test_a_process_that_its_command_line_does_not_reproduce_is_not_restarted(arguments, typed):
    code = "import os; from audiovae_jax.commands import huge_pages; print('started', flush=True); huge_pages.restart()"
    done = subprocess.run(
        [sys.executable, *(argument.format(code) for argument in arguments)],
        input=typed.format(code),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["started"]


def test_a_child_of_multiprocessing_is_not_restarted(monkeypatch):
    monkeypatch.setattr(sys.modules["__main__"], "__file__", __file__, raising=False)
    assert huge_pages._runs_a_script()
    monkeypatch.setattr(multiprocessing, "parent_process", multiprocessing.current_process)
    assert not huge_pages._runs_a_script()


def test_it_respects_the_users_settings_and_the_systems_limits(monkeypatch):
    monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("it restarted the process"))
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=0")
    huge_pages.restart()
    monkeypatch.delenv("GLIBC_TUNABLES")
    monkeypatch.setattr(huge_pages, "_can_ask", lambda: False)
    huge_pages.restart()
    assert "GLIBC_TUNABLES" not in os.environ
