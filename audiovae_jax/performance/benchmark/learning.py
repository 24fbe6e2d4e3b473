"""Learning benchmark: validation metrics of ours and of the torch reference."""

import contextlib
import functools
import io
import sys
import tempfile
import time
from pathlib import Path

import flax.traverse_util
import jax
import matplotlib
import ml_collections
import numpy as np
from jax.sharding import PartitionSpec as P
from matplotlib.figure import Figure

from audiovae_jax.config import build
from audiovae_jax.data.feeding import pipeline
from audiovae_jax.distributed import mesh
from audiovae_jax.html import drawing
from audiovae_jax.losses import si_sdr, waveform_l1
from audiovae_jax.performance.benchmark import measure
from audiovae_jax.performance.benchmark.peer import Peer
from audiovae_jax.storage import atomic
from audiovae_jax.torch_io import layout
from audiovae_jax.torch_io.export import audio_vae_state_dict
from audiovae_jax.training import compilation, program, step
from audiovae_jax.training.state import TrainState, create_state

PICTURES = (".svg", ".png")  # suffixes
_SI_SDR = "si_sdr_db"  # compared by difference, the other metrics by ratio


def run(config: ml_collections.ConfigDict, *, against: list[str]) -> dict:
    """Train `config`, and torch on the same batches from the same weights.

    Both use the same latent noise. Both validate the same crops before the first step, every `config.validate_every`
    steps and after the last one. The metrics are of the reconstruction from the posterior's mean: each of
    `config.losses` by its name, the L1 distance, and SI-SDR in dB. Progress goes to stderr.

    Args:
      config: of the run.
      against: `["torch"]`, or empty to train only ours.

    Returns:
      A report. `ours` and `torch` have the time of a step, without the first one. `curves` has the list `step`, and
      `{metric: list}` of each system. `final` compares the last values: `{metric}_ratio` of ours to torch's, and
      `si_sdr_db_difference`.
    """
    report = {"benchmark": "learning", "machine": measure.machine(), "what": _describe(config)}
    with tempfile.TemporaryDirectory(prefix="audiovae_jax_learning_") as folder, contextlib.ExitStack() as stack:
        ours = _Ours(config, Path(folder))
        systems = {"ours": ours}
        for name in dict.fromkeys(against):
            systems[name] = peer = stack.enter_context(Peer(name, "learning", config, folder=folder))
            report[name] = peer.description
        curves = {"step": [], **{name: {} for name in systems}}
        seconds = {name: [] for name in systems}
        for at in range(config.num_steps + 1):
            if at % config.validate_every == 0 or at == config.num_steps:
                curves["step"].append(at)
                for name, system in systems.items():
                    for metric, value in system.run("validate")["result"].items():
                        curves[name].setdefault(metric, []).append(value)
                lines = table(curves)
                print("\n".join(lines[-1:] if at else lines), file=sys.stderr, flush=True)
            if at < config.num_steps:
                ours.prepare(at)
                for name, system in systems.items():
                    seconds[name].append(system.run("step")["seconds"])
    for name in systems:
        timing = measure.Timing(tuple(seconds[name][1:] or seconds[name]))
        report[name] = timing.summary() | report.get(name, {})
    report["curves"] = curves
    if against:
        report["final"] = {
            f"{metric}_{_comparison(metric)}": _compared(metric, curves, -1) for metric in curves["ours"]
        }
    return report


class _Ours:
    """Our training, with the work of a `Peer`.

    Args:
      config: of the run.
      folder: gets the data of each piece of work, for a peer: `weights.npz`, `validation.npy` and `batch.npz`. Their
        audio is `[B, C, T]`.
    """

    def __init__(self, config, folder):
        self._config, self._folder = config, folder
        self._recipe = recipe = build.build_recipe(config)
        self._devices = devices = mesh.make_mesh()
        self._scalars = program.place_scalars(recipe, devices)
        data = pipeline.open_data(config.data, batch_size=config.batch_size, seed=config.seed)
        self._batches = self._read(data.train, config.num_steps)
        self._validation = np.stack(
            list(self._read(data.validation, -(-config.data.validation_crops // config.batch_size)))
        )
        with compilation.sparing():
            self._state = create_state(recipe, devices, build.example_shape(config))
        np.savez(folder / "weights.npz", **torch_weights(self._state))
        np.save(folder / "validation.npy", np.moveaxis(self._validation, -1, -2))
        self._steps = {active: program.map_step(recipe, devices, active) for active in (False, True)}
        self._noise = mesh.map_devices(functools.partial(step.latent_noise, recipe), devices, P(mesh.AXIS))
        self._measure = jax.jit(functools.partial(_metrics, recipe))

    def _read(self, crops, num_batches):
        data = self._config.data
        return pipeline.batches(
            crops,
            batch_size=self._config.batch_size,
            start_step=0,
            num_steps=num_batches,
            num_threads=data.num_threads,
            prefetch_batches=data.prefetch_batches,
        )

    def prepare(self, at: int):
        """Read the batch of step `at`, and draw its latent noise for a peer."""
        self._batch = mesh.place_batch(self._devices, next(self._batches))
        noise = self._noise(np.int32(at), self._batch)
        arrays = {"audio": self._batch, "noise": noise}
        np.savez(self._folder / "batch.npz", **{name: np.moveaxis(x, -1, -2) for name, x in arrays.items()})
        adversarial = self._recipe.adversarial
        self._is_adversarial = adversarial is not None and bool(adversarial.is_active(at))

    def run(self, work: str) -> dict:
        """Run "step" or "validate" once, and return its `seconds`.

        A validation returns its metrics as `result` too.
        """
        start = time.perf_counter()
        result = {}
        if work == "step":
            with compilation.sparing():
                self._state, _ = self._steps[self._is_adversarial](self._state, self._batch, self._scalars)
            jax.block_until_ready(self._state)
        else:
            values = jax.device_get([self._measure(self._state.evaluation_variables, x) for x in self._validation])
            names = [*(name for name, _, _ in self._recipe.losses.terms), "waveform_l1", _SI_SDR]
            result = {name: float(np.mean([value[name] for value in values])) for name in dict.fromkeys(names)}
        return {"seconds": time.perf_counter() - start, "result": result}


def torch_weights(state: TrainState) -> dict[str, np.ndarray]:
    """Return the networks' parameters by torch's names; see `layout.to_torch`.

    The names follow `model.` or `discriminator.`.
    """
    weights = {f"model.{key}": tensor for key, tensor in audio_vae_state_dict(state.variables).items()}
    for path, array in flax.traverse_util.flatten_dict(state.discriminator_params or {}).items():
        weights[f"discriminator.{layout.torch_key(path)}"] = layout.to_torch(path, np.asarray(array))
    return weights


def _metrics(recipe, variables, audio):
    output = recipe.model.apply(variables, audio, deterministic=True)
    pair = {"prediction": output.reconstruction, "target": audio}
    return {**recipe.losses(**pair)[1], "waveform_l1": waveform_l1(**pair), _SI_SDR: -si_sdr(**pair)}


def _describe(config):
    return (
        f"{config.num_steps} steps {'with' if config.use_adversarial else 'without'} discriminator, base_channels "
        f"{config.model.base_channels}, {config.batch_size} x {config.data.crop_length} samples"
    )


def _comparison(metric):
    return "difference" if metric == _SI_SDR else "ratio"


def _compared(metric, curves, i):
    """Compare ours to the other system at point `i`."""
    ours, theirs = (curves[name][metric][i] for name in curves if name != "step")
    return ours - theirs if metric == _SI_SDR else ours / theirs if theirs else float("nan")


def table(curves: dict) -> list[str]:
    """Format the `curves` of a report as lines: a header, then the validations."""
    systems = [name for name in curves if name != "step"]
    columns = [("step", [str(at) for at in curves["step"]])]
    for metric in curves["ours"]:
        columns += [
            (metric if name == "ours" else name, [f"{value:.4f}" for value in curves[name][metric]]) for name in systems
        ]
        if len(systems) > 1:
            compared = [_compared(metric, curves, i) for i in range(len(curves["step"]))]
            columns.append((_comparison(metric), [f"{value:z.4f}" for value in compared]))
    widths = [max(map(len, (header, *cells))) for header, cells in columns]
    rows = zip(*([header, *cells] for header, cells in columns), strict=True)
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def draw(report: dict, path: Path):
    """Draw the curves of a report.

    Args:
      report: of `run`.
      path: the file to write, with one of the suffixes `PICTURES`.

    Raises:
      OSError: the file cannot be written.
    """
    curves = report["curves"]
    systems = [name for name in curves if name != "step"]
    content = io.BytesIO()
    with matplotlib.rc_context(drawing.LOOK):
        figure = Figure((9, 6), layout="constrained")
        rows = -(-len(curves["ours"]) // 2)
        for axes, metric in zip(figure.subplots(rows, 2, squeeze=False).flat, curves["ours"], strict=False):
            for i, name in enumerate(systems):
                style = {"linewidth": 3.0, "alpha": 0.5} if i == 0 else {"linewidth": 1.2}  # both stay visible
                axes.plot(curves["step"], curves[name][metric], color=drawing.series(i), label=name, **style)
            axes.set_title(metric, loc="left")
            axes.set_xlabel("steps")
            axes.legend(frameon=False)
        figure.suptitle(report["what"], fontsize=9, parse_math=False)
        figure.savefig(content, format=path.suffix[1:].lower(), dpi=110, facecolor="white")
    with atomic.replacing(path) as temporary:
        temporary.write_bytes(content.getvalue())
