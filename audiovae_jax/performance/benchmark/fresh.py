"""Benchmarks that need a new process: the first step, and peak memory."""

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
    """Time from process start to the end of the first step, cold and warm.

    Cold is with an empty compilation cache, warm with a filled one.

    Returns:
      A report with `cold` and `warm`. Each contains `seconds` in total, and the parts `importing`, `initialise`,
      `compile` and `step`.
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
    """Measure peak memory during steps, without compiling.

    On accelerators this is device memory, on CPUs the memory of the process.

    Returns:
      A report: `peak_bytes` of `ours` and of each peer, and `ratios` of ours to theirs.
    """
    report = {"benchmark": "memory"}
    report["what"] = f"training step of {config.batch_size} x {config.data.crop_length} samples"
    cache = tempfile.mkdtemp(prefix="audiovae_jax_benchmark_")
    try:
        _in_fresh_process(_first_step, config, cache)  # fills the cache, so that the next process compiles nothing
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
    """Run `fn(config, *args)` in a new process.

    Returns:
      `(report, machine)`. The report also contains the seconds of `importing`, and `seconds` in total.
    """
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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C also reaches the parent, which kills this process
    jax.config.update("jax_compilation_cache_dir", cache)
    compilation.use_cache()  # caches small programs too, as training does
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
