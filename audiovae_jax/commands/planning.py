"""The commands `plan` and `doctor`."""

import json
import sys
from pathlib import Path

import jax
from absl import flags

from audiovae_jax.commands import arguments, process, training
from audiovae_jax.commands.arguments import Command
from audiovae_jax.errors import ConfigError, PlanError, printable
from audiovae_jax.performance.planning import compiling, doctor, plan, table, targets
from audiovae_jax.run import bucket_lock
from audiovae_jax.storage import atomic


def _plan_flags():
    arguments.define_config_flag()
    flags.DEFINE_list(
        "target",
        ["here"],
        "devices to plan for: h200:2x8 (hosts x GPUs; h100), v5e:4x4 (a slice; v5p, v6e), cpu:8, here",
    )
    flags.DEFINE_integer("compiles", 4, "maximum compiles per target to find the largest batch; 1 for no search", 1, 20)
    flags.DEFINE_float(
        "host_memory", None, "memory limit of compiling in GB; default nine tenths of the free memory", 0.1
    )
    flags.DEFINE_float("minutes", 60.0, "time limit of a compile", 0.01)
    flags.DEFINE_string("json", None, "file for the plan as JSON")


def _plan():
    values = flags.FLAGS
    if values.json is not None:
        _require_writable(values.json)
    chosen = targets.parse(values.target)
    free = compiling.available_memory()
    limits = plan.Limits(
        compiles=values.compiles,
        host_memory=int(values.host_memory * 1e9) if values.host_memory else free and int(0.9 * free),
        seconds=60 * values.minutes,
    )
    config = arguments.read_config(Path("runs") / arguments.config_name())
    report = plan.plan(config, chosen, limits, lambda text: print(text, file=sys.stderr, flush=True))
    print("\n".join(table.plan_lines(report)), flush=True)
    if values.json is not None:
        try:
            with atomic.replacing(Path(values.json)) as temporary:
                temporary.write_text(json.dumps(report, indent=2) + "\n")
        except OSError as error:
            raise PlanError(f"the plan was not written: {error.strerror or error}") from error
    failed = [name for name, entry in report["targets"].items() if "error" in entry]
    if failed:
        raise PlanError(f"{', '.join(failed)} could not be planned, or not completely; the reasons are above")


def _require_writable(path):
    """Raise ConfigError if the output cannot be written.

    Called before the work starts.
    """
    try:
        atomic.require_writable(path)
    except OSError as error:
        raise ConfigError(f"--json={printable(path)} cannot be written: {error.strerror or error}") from error


PLAN = Command(
    name="plan",
    details="The real train step is compiled for each target. GPUs and TPUs need the extra cuda or tpu, but no device.",
    main=_plan,
    define_flags=_plan_flags,
    interrupted="no plan was made",
)


def _doctor_flags():
    arguments.define_config_flag()
    flags.DEFINE_string("workdir", None, "workdir of the run; default runs/<config name>, as for train")
    flags.DEFINE_bool("compile", True, "compile the step to check its memory; training then reuses it from the cache")
    training.define_process_flags()


def _doctor():
    with training.joined():
        failed = _print_checks()
    if failed:
        sys.exit(1)


def _print_checks():
    """Print the checks and return whether any check failed."""
    values = flags.FLAGS
    workdir = bucket_lock.as_workdir(values.workdir or Path("runs") / arguments.config_name())
    config = arguments.read_config(workdir)
    process.limit_nccl(2 * config.stuck_timeout)  # as `train` does, which then finds the step in the cache
    training.use_cache_of(workdir)
    several = jax.distributed.is_initialized()  # jax.process_count fails without a device, which is to be reported
    first = not several or jax.process_index() == 0
    checks = doctor.examine(
        config,
        workdir,
        compile_step=values.compile,
        say=lambda text: print(text, file=sys.stderr, flush=True) if first else None,
    )
    failed = any(check.status == doctor.FAILED for check in checks)
    if first or failed:
        whose = f"process {jax.process_index()}:\n" if several else ""
        print(whose + "\n".join(doctor.lines(checks)), flush=True)
    return failed


DOCTOR = Command(
    name="doctor",
    details="""\
Run it on every host, like training. It also writes a checkpoint and reads it back. The exit status is 1 if training
would fail.""",
    main=_doctor,
    define_flags=_doctor_flags,
    interrupted="not all checks were made",
)
