"""The launch files next to the scripts: they parse, and their commands accept the given flags."""

import re
import shutil
import subprocess
from pathlib import Path

import command_line
import pytest

LAUNCH = Path(__file__).resolve().parents[1] / "scripts" / "launch"


@pytest.mark.parametrize("path", sorted(LAUNCH.glob("*.sh")), ids=lambda path: path.name)
def test_shell_scripts_parse(path):
    bash = shutil.which("bash") or pytest.skip("there is no bash here")
    checked = subprocess.run([bash, "-n", str(path)], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


@pytest.fixture(scope="module")
def train_flags(tmp_path_factory):
    return command_line.flags_in(command_line.run("train", "--help", cwd=tmp_path_factory.mktemp("help")).stdout)


@pytest.mark.parametrize("path", sorted(LAUNCH.iterdir()), ids=lambda path: path.name)
def test_flags_are_the_commands_own(path, train_flags):
    text = path.read_text()
    assert "scripts/train.py" in text or "audiovae_jax" in text
    of_train = {*train_flags, "--config."}
    others = {"--label", "--kill-on-bad-exit", "--zone", "--worker", "--command"}  # of srun and gcloud
    commands = "\n".join(line for line in text.splitlines() if not line.startswith("#SBATCH"))
    given = set(re.findall(r"(?<![\w-])--[a-z_-]+\.?", commands))
    assert given <= of_train | others
    assert given & of_train


def test_the_job_set_is_one():
    yaml = pytest.importorskip("yaml")
    job_set = yaml.safe_load((LAUNCH / "gke_jobset.yaml").read_text())
    assert (job_set["kind"], job_set["apiVersion"]) == ("JobSet", "jobset.x-k8s.io/v1alpha2")
    (workers,) = job_set["spec"]["replicatedJobs"]
    job = workers["template"]["spec"]
    assert job["parallelism"] == job["completions"] == 4  # hosts of a 4x4 slice of four chips each
    pod = job["template"]["spec"]
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x4"
    (container,) = pod["containers"]
    assert container["resources"]["limits"]["google.com/tpu"] == 4
    assert container["command"][:4] == ["python", "-m", "audiovae_jax", "train"]
    # GPU pods find the first one by a name that is built from these.
    assert (
        f"{job_set['metadata']['name']}-{workers['name']}-0-0.{job_set['metadata']['name']}:1234"
        in (LAUNCH / "gke_jobset.yaml").read_text()
    )


def test_slurm_leaves_time_to_save():
    text = (LAUNCH / "slurm.sh").read_text()
    assert re.search(r"^#SBATCH --signal=TERM@\d{3}$", text, flags=re.MULTILINE)
    assert "--stop_after=11h45m" in text
    assert "#SBATCH --time=12:00:00" in text
