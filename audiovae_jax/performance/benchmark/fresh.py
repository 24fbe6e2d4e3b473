"""What can only be measured in a process of its own: the first step, and peak memory."""

import multiprocessing
import shutil
import signal
import tempfile
import time

import jax
import ml_collections

from audiovae_jax.config import configuration
from audiovae_jax.errors import TrainingError, UserError
from audiovae_jax.performance.benchmark import measure
from audiovae_jax.performance.benchmark.peer import Peer, check_devices
from audiovae_jax.performance.benchmark.step import Step
from audiovae_jax.training import compilation


def first_step(config: ml_collections.ConfigDict) -> dict:
    """The time from starting a process to the end of its first training step, with an empty cache and a filled one.

    Returns:
      A report: `cold` and `warm`, each with `seconds` in all and, of those, what `importing`,
      `initialise`, `compile` and the first `step` took.
    """
    report = {"benchmark": "compile"}
    report["what"] = f"first step, {'with' if config.use_adversarial else 'without'} discriminator"
    cache = tempfile.mkdtemp(prefix="audiovae_jax_benchmark_")
    try:
        for name in ("cold", "warm"):
            report[name], report["machine"] = _in_fresh_process(_first_step, config, cache)
    finally:
        shutil.rmtree(cache, ignore_errors=True)
    return report


def memory(config: ml_collections.ConfigDict, *, against: list[str], repeats: int) -> dict:
    """Peak memory while steps run: of the device, or on a CPU of the whole process, nothing compiling.

    Returns:
      A report: `peak_bytes` of `ours` and of each other system, and `ratios` of ours to theirs.
    """
    report = {"benchmark": "memory"}
    report["what"] = f"training step of {config.batch_size} x {config.data.crop_length} samples"
    cache = tempfile.mkdtemp(prefix="audiovae_jax_benchmark_")
    try:
        _in_fresh_process(_first_step, config, cache)  # so that the next one has nothing to compile
        report["ours"], report["machine"] = _in_fresh_process(_peak, config, cache, repeats, against)
    finally:
        shutil.rmtree(cache, ignore_errors=True)
    report["ratios"] = {}
    for name in against:
        with Peer(name, "step", config) as peer:
            peer.run("step")
            peer.run("reset")
            for _ in range(repeats):
                answer = peer.run("step")
            report[name] = {"peak_bytes": answer["peak_bytes"]} | peer.description
        report["ratios"][name] = report["ours"]["peak_bytes"] / report[name]["peak_bytes"]
    return report


def _in_fresh_process(fn, config, cache, *args):
    """What `fn(config, *args)` returns there, with the phases of the process's life, and what it ran on."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(
        target=_answer, args=(sender, fn, time.time(), config.to_dict(), cache, *args), daemon=True
    )
    process.start()
    sender.close()
    try:
        found, machine = receiver.recv()
    except EOFError:
        process.join()
        raise TrainingError(f"the measuring process ended with status {process.exitcode}; see above") from None
    except BaseException:
        process.kill()
        raise
    finally:
        process.join()
    if isinstance(found, UserError):
        raise found
    return found, machine


def _answer(sender, fn, started, config, cache, *args):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends this process
    jax.config.update("jax_compilation_cache_dir", cache)
    compilation.use_cache()  # for small programs too, as in training
    importing = time.time() - started
    try:
        found = fn(ml_collections.ConfigDict(config), *args)
    except UserError as error:
        sender.send((error, None))
        return
    sender.send((found | {"importing": importing, "seconds": time.time() - started}, measure.machine()))


def _first_step(config):
    configuration.check(config, jax.device_count())
    step = Step.of(config)
    return step.seconds | {"step": step.run()}


def _peak(config, repeats, against):
    check_devices(config, against)
    step = Step.of(config)
    step.run()
    measure.reset_peak_memory()
    for _ in range(repeats):
        step.run()
    return {"peak_bytes": measure.peak_memory(), **step.figures()}
