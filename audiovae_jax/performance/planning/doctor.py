"""The doctor: checks whether this machine is ready for a run."""

import dataclasses
import fcntl
import functools
import hashlib
import platform
import shutil
import tempfile
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jaxlib
import ml_collections
import numpy as np
from jax.experimental import multihost_utils

import audiovae_jax
from audiovae_jax.config import build, configuration
from audiovae_jax.distributed import agreement, mesh
from audiovae_jax.errors import ConfigError, UserError
from audiovae_jax.performance.planning import table
from audiovae_jax.performance.planning.compiling import StepCompiler
from audiovae_jax.performance.planning.targets import HERE, Target
from audiovae_jax.persistence.checkpoint import Checkpoints
from audiovae_jax.run import start, warm_start
from audiovae_jax.training import compilation, program

_CROPS = 8  # number of crops to read
_WIDTH = 96
OK, DOUBTFUL, FAILED, SKIPPED = "ok", "doubtful", "FAILED", "skipped"


@dataclasses.dataclass(frozen=True)
class Check:
    """A row of the doctor's table.

    Attributes:
      name: of the check.
      status: OK, DOUBTFUL (the run would start), FAILED (it would fail), or SKIPPED (an earlier check or an option
        prevents it).
      result: what was found.
      remedy: the remedy; empty if none is needed.
    """

    name: str
    status: str
    result: str
    remedy: str = ""


class Finding(UserError):
    """A problem that a check found, and its remedy."""

    def __init__(self, result: str, remedy: str, status: str = FAILED):
        super().__init__(f"{result}; {remedy}")
        self.result, self.remedy, self.status = result, remedy, status


def free_bytes(path: Path) -> int:
    """Free bytes on the disk of a folder, which need not exist yet."""
    return shutil.disk_usage(_existing(path)).free


def examine(
    config: ml_collections.ConfigDict,
    workdir: Path,
    *,
    compile_step: bool = True,
    free: Callable[[Path], int] = free_bytes,
    say: Callable[[str], None] = lambda text: None,
) -> list[Check]:
    """Check everything that a run of `config` in `workdir` needs.

    The checks use the devices of this process and its peers. Every process of a run must call this. It leaves nothing
    behind except entries in the compilation cache.

    Args:
      config: finalized.
      workdir: of the run.
      compile_step: whether to compile the step to check its memory.
      free: returns the free bytes at a path.
      say: called with a line of progress before every check.

    Returns:
      The checks in the order in which they were made.
    """
    looker = _Looker(config, workdir, free)
    checks = []
    for name, look, needs in (
        ("devices", looker.devices, ()),
        ("config", looker.config, ()),
        ("data", looker.data, ("config",)),
        ("processes", functools.partial(looker.processes, checks), ()),
        ("memory", looker.memory, ("config", "processes")),
        ("disk", looker.disk, ("config", "processes")),
        ("checkpoint", looker.checkpoint, ("config", "processes", "disk")),
        ("workdir", looker.claim, ("config",)),
    ):
        missing = [check.name for check in checks if check.name in needs and check.status in (FAILED, SKIPPED)]
        if name == "checkpoint" and (elsewhere := agreement.any_reason(" and ".join(missing) or None)):
            missing = missing or [elsewhere]  # it needs all processes
        if missing:
            checks.append(Check(name, SKIPPED, f"needs {' and '.join(missing)}"))
        elif name == "memory" and not compile_step:
            checks.append(Check(name, SKIPPED, "the step was not compiled (--nocompile)"))
        else:
            say(f"{name} ...")
            checks.append(_run(name, look))
        if name == "devices" and checks[-1].status == FAILED:
            break  # every other check needs them
    return checks


def lines(checks: list[Check]) -> list[str]:
    """Format the checks as a table, with a last line on whether a run may start."""
    rows = [("check", "", "result, and remedy")]
    for check in checks:
        first, *rest = textwrap.wrap(check.result, _WIDTH, break_long_words=False) or [""]
        rest += textwrap.wrap(
            check.remedy, _WIDTH, break_long_words=False, initial_indent="-> ", subsequent_indent="   "
        )
        rows += [(check.name, check.status, first), *(("", "", text) for text in rest)]
    failed = [check.name for check in checks if check.status == FAILED]
    last = f"would fail: {', '.join(failed)}" if failed else "ready: no check failed"
    return [*table.columns(rows), "", last]


def _run(name, look):
    try:
        return Check(name, OK, look())
    except Finding as found:
        return Check(name, found.status, found.result, found.remedy)
    except UserError as error:
        result, _, remedy = str(error).partition("; ")
        return Check(name, FAILED, " ".join(result.split()), " ".join(remedy.split()))
    except Exception as error:  # an unexpected error fails its check, and the other checks still run
        what = str(error).strip().split("\n")[0]
        return Check(name, FAILED, f"{type(error).__name__}: {what}"[:300], "an unexpected error; please report it")


class _Looker:
    """The checks, and the state that they share."""

    def __init__(self, config, workdir, free):
        self._config, self._workdir, self._free = config, workdir, free
        self._fingerprint = ""
        self._recipe = self._compiler = None

    def devices(self):
        try:
            device, count = jax.devices()[0], jax.device_count()
        except RuntimeError as error:
            reason = str(error).strip().split("\n")[0]
            raise Finding(f"JAX finds no device: {reason}", _lock_remedy() or "check JAX_PLATFORMS") from error
        found = (
            f"{count} x {device.device_kind} ({device.platform}), {jax.process_count()} process(es); "
            f"audiovae_jax {audiovae_jax.__version__}, jax {jax.__version__}, jaxlib {jaxlib.__version__}, "
            f"Python {platform.python_version()}"
        )
        unseen = [extra for extra, paths in _DEVICE_FILES.items() if any(Path(path).exists() for path in paths)]
        if device.platform == "cpu" and unseen:
            remedy = f"JAX does not see it: pip install 'audiovae_jax[{unseen[0]}]', and check JAX_PLATFORMS"
            if unseen[0] == "tpu" and (lock := _lock_remedy()):
                remedy = f"JAX does not see it: {lock}"
            raise Finding(f"{found}; there is an accelerator for {unseen[0]}", remedy, DOUBTFUL)
        return found

    def config(self):
        config = self._config
        configuration.check(config, jax.device_count())
        self._recipe = build.build_recipe(config)
        sections = ("losses", "discriminator") if config.use_adversarial else ("losses",)
        for section in sections:
            for key, rate in configuration.flatten(config[section]).items():
                if key.rpartition(".")[2].endswith("sample_rate") and rate != config.data.sample_rate:
                    raise Finding(
                        f"config.{section}.{key}={rate}, but config.data.sample_rate={config.data.sample_rate}",
                        "set both to the same value, or weights over frequency are wrong",
                    )
        return (
            f"{config.batch_size // jax.device_count()} item(s) per device; hop {self._recipe.model.hop_length}, "
            f"crops of {config.data.crop_length} samples, {config.data.channels} channel(s), "
            f"{config.data.sample_rate} Hz"
        )

    def data(self):
        config = self._config
        data = start.open_data(config, self._workdir)
        self._fingerprint = data.fingerprint
        if data.health is not None:
            data.health.require_few()
        began = time.perf_counter()
        read = [data.train[index] for index in range(_CROPS)] + [data.validation[0]]
        speed = len(read) / (time.perf_counter() - began)
        if not all(np.isfinite(crop).all() for crop in read):
            raise Finding("a crop contains values that are not finite", "check the data with check_data")
        silent = sum(not crop.any() for crop in read)
        shown = f"{len(read)} crops read, {speed:.0f}/s by one thread" + (f", {silent} of them silent" * bool(silent))
        if data.catalog is None:
            return f"built-in music generator; {shown}"
        found = data.catalog
        hours = sum(track.seconds for track in found.train) / 3600
        said = f"{len(found.train)} to train on ({hours:.2f} h), {len(found.validation)} for validation; {shown}"
        if found.skipped:
            name, reason = found.skipped[0]
            remedy = f"left out: {name} ({reason}); check_data lists all"
            raise Finding(f"{said}; {len(found.skipped)} cannot be used", remedy, DOUBTFUL)
        return said

    def processes(self, checks):
        """Compare config, data, versions, flags and failed checks of all processes.

        Every process must call this, even if an earlier check failed.
        """
        ours = {
            "config": configuration.to_json(self._config),
            "data": self._fingerprint,
            "versions": f"{audiovae_jax.__version__} {compilation.compiler_versions()}",
            **compilation.compiler_flags(),
            "checks": " ".join(check.name for check in checks if check.status in (FAILED, SKIPPED)),
        }
        if jax.process_count() == 1:
            return "one process, nothing to compare"
        digests = np.stack([_digest(text) for text in ours.values()])
        everyone = multihost_utils.process_allgather(digests)
        differ = {
            name: [i for i, theirs in enumerate(everyone[:, row]) if (theirs != everyone[0, row]).any()]
            for row, name in enumerate(ours)
        }
        differ = {name: who for name, who in differ.items() if who}
        if differ:
            listed = "; ".join(f"{name} of process {', '.join(map(str, who))}" for name, who in differ.items())
            raise Finding(
                f"different from process 0: {listed}", "give every process the same command, files, versions and flags"
            )
        return f"{len(everyone)} agree on config, data and versions"

    def memory(self):
        config = self._config
        self._compiler = StepCompiler(config, Target(HERE, HERE))
        batch = config.batch_size // jax.device_count() // config.accumulation_steps
        compiled = self._compiler.compile(batch)
        usable = self._compiler.devices.usable_bytes
        remedy = "a smaller config.batch_size, config.model.remat=True or dtype bfloat16; see the command plan"
        if compiled is None:
            raise Finding(f"{batch} item(s) per device do not fit: the compiler ran out of device memory", remedy)
        planned = (
            f"planned: {table.size(compiled.temp_bytes)} of temporaries, {table.size(compiled.bytes_moved)} moved in a "
            f"step, collectives: {table.collectives([(each.op, each.bytes) for each in compiled.collectives])}"
        )
        needed = f"{batch} item(s) per device need {table.size(compiled.peak_bytes)}"
        if usable is None:
            return f"{needed}; the device does not report its memory ({planned})"
        if compiled.peak_bytes > usable:
            raise Finding(f"{needed} of {table.size(usable)} ({planned})", remedy)
        return f"{needed} of {table.size(usable)} ({planned})"

    def disk(self):
        _require_folder(self._workdir)
        size = self._state_bytes()
        kept = self._config.checkpoints_kept + self._config.best_checkpoints_kept
        needed, there = (kept + 1) * size, self._free(self._workdir)
        said = (
            f"{table.size(there)} free; {kept} checkpoints of {table.size(size)} are kept, and a new "
            "one is written before an old one is deleted"
        )
        if needed > there:
            raise Finding(said, f"free {table.size(needed - there)} of disk space, or give another --workdir")
        return said

    def checkpoint(self):
        """Write a checkpoint of the run's size next to the workdir, and restore it."""
        _require_folder(self._workdir)
        parent = _existing(self._workdir)
        folder, reason = None, "by process 0"
        try:
            if jax.process_index() == 0:
                folder = Path(tempfile.mkdtemp(prefix=".doctor.", dir=parent))
        except OSError as error:
            reason = error.strerror or str(error)
        folder = _same_everywhere(folder, parent)
        if folder is None:
            raise Finding(f"{parent} cannot be written to ({reason})", "give another --workdir, or fix its permissions")
        try:
            return self._write_and_read(folder)
        finally:
            if jax.process_index() == 0:
                shutil.rmtree(folder, ignore_errors=True)

    def claim(self):
        """Check the workdir as training does at its start, without writing."""
        folder = self._workdir / "checkpoints"
        said = f"{self._workdir} is new"
        if folder.is_dir():
            checkpoints = Checkpoints(folder, read_only=True)
            start.claim_workdir(self._config, self._workdir, checkpoints, write=False)
            if steps := checkpoints.steps():
                return f"{self._workdir} resumes from step {steps[-1]}"
            said = f"{self._workdir} has no checkpoint yet"
        if self._config.init_from is None:
            return said
        warm_start.require_same_model(self._config)
        return f"{said}; the run starts from {self._config.init_from}"

    def _write_and_read(self, folder):
        devices = mesh.make_mesh()
        everywhere = mesh.replicated(devices)
        shapes = self._shapes(devices)
        state = jax.tree.map(_noise(everywhere), shapes)
        checkpoints = Checkpoints(folder / "checkpoints")
        try:
            began = time.perf_counter()
            checkpoints.save(state, step=0, config={}, data={}, metrics={"total_loss": 0.0})
            checkpoints.wait()
            written = time.perf_counter()
            checkpoints.restore(shapes, everywhere, step=0)  # verifies checksums
            read = time.perf_counter()
        finally:
            checkpoints.close()
        size = table.size(self._state_bytes())
        return f"{size} written in {written - began:.1f} s, read back in {read - written:.1f} s, checksums equal"

    def _shapes(self, devices):
        return program.abstract_state(self._recipe, devices, build.example_shape(self._config))

    def _state_bytes(self):
        shapes = jax.tree.leaves(self._shapes(mesh.make_mesh()))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in shapes)


_DEVICE_FILES = {"cuda": ("/dev/nvidia0",), "tpu": ("/dev/accel0", "/dev/vfio/0")}


_TPU_LOCK = Path("/tmp/libtpu_lockfile")  # of the process that uses the TPU; stays if that process is killed


def _lock_remedy():
    """Return how to release libtpu's lock file; empty without one."""
    try:
        with _TPU_LOCK.open("r+") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # as libtpu does; the system releases it with the process
    except FileNotFoundError:
        return ""
    except PermissionError:
        return f"{_TPU_LOCK} is another user's. If none of their processes uses the TPU, sudo rm {_TPU_LOCK}"
    except OSError:
        return f"another process uses the TPU and holds {_TPU_LOCK}. Find it with sudo fuser -v {_TPU_LOCK}, and end it"
    return f"no process holds {_TPU_LOCK}, so it is stale. rm {_TPU_LOCK}"


def _noise(sharding):
    """Return a function that makes an array of a given shape on every device.

    Floating-point arrays are noise, which does not compress.
    """
    rng = np.random.default_rng(0)

    def make(shape):
        if np.issubdtype(shape.dtype, np.floating):
            values = rng.standard_normal(shape.shape, np.float32).astype(shape.dtype)
        else:
            values = np.zeros(shape.shape, shape.dtype)
        return jax.make_array_from_callback(shape.shape, sharding, lambda index: values[index])

    return make


def _same_everywhere(folder, parent):
    """Broadcast process 0's folder to all processes; None if it has none."""
    if jax.process_count() == 1:
        return folder
    name = np.frombuffer((folder.name if folder else "").encode().ljust(64, b"\0"), np.uint8)
    name = bytes(multihost_utils.broadcast_one_to_all(name)).rstrip(b"\0").decode()
    return parent / name if name else None


def _digest(text):
    return np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)


def _require_folder(workdir):
    if not isinstance(workdir, Path):
        raise Finding(f"{workdir} is a bucket, which is not checked", "", SKIPPED)


def _existing(path):
    path = path.absolute()
    while not path.is_dir():
        if path.exists():
            raise ConfigError(f"--workdir: {path} is not a folder; give another")
        path = path.parent
    return path
