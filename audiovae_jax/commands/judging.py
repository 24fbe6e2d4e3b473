"""The commands `evaluate`, `probe_latents` and `serve`."""

import contextlib
import dataclasses
import functools
import json
import os
import signal
import threading
import time
from pathlib import Path

import tqdm
from absl import flags

from audiovae_jax.commands import bundled_configs, codec
from audiovae_jax.commands.arguments import Command
from audiovae_jax.data.audio import audio_file, remote
from audiovae_jax.data.feeding import pipeline
from audiovae_jax.data.sets import catalog, sources
from audiovae_jax.data.sets.catalog import Track
from audiovae_jax.errors import ConfigError, DataError, printable
from audiovae_jax.evaluation import distributions, evaluate, flow_probe, systems
from audiovae_jax.evaluation.listening import server
from audiovae_jax.evaluation.listening.models import Models
from audiovae_jax.evaluation.presets import PRESETS
from audiovae_jax.evaluation.visqol import Visqol
from audiovae_jax.storage import atomic

_AFTER = 10.0  # seconds that threads may run after the page is closed
_ALL = "all"
_MAX_MB = 1 << 20


def _define():
    codec.define_codec_flags()
    flags.DEFINE_string("out", "evaluation", "folder for files.jsonl, files.csv, summary.json and report.html")
    flags.DEFINE_list("baselines", ["opus24", "opus64", "mp3_128"], "codecs to compare with, by kbit/s; empty for none")
    flags.DEFINE_enum("preset", None, list(PRESETS), "published table to compare with, measured in the same way")
    flags.DEFINE_integer("measure_at", None, "rate in Hz to resample to before measuring; default each file's own", 1)
    flags.DEFINE_enum("side", _ALL, [_ALL, "train", "validation"], "side of ROOT's split")
    _define_data()
    flags.DEFINE_integer("limit", None, "maximum number of tracks to evaluate, spread evenly over all", lower_bound=1)
    flags.DEFINE_bool(
        "visqol", False, "also compute the ViSQOL score; slow, and needs visqol-python (the extra visqol)"
    )
    what = "your module:function from audio [T, C] and Hz to embeddings [n, dimensions]; adds FAD and KAD"
    flags.DEFINE_string("embedding", None, what)


def _define_data():
    flags.DEFINE_enum("source", sources.AUTO, list(sources.NAMES), "type of ROOT; auto detects it")
    what = "fraction of the tracks to validate on, if ROOT has no split; default as in training"
    flags.DEFINE_float("validation_fraction", None, what, lower_bound=0.0, upper_bound=1.0)
    flags.DEFINE_bool("mix", False, "mix channels down or up to the model's")


def _evaluate(*given):
    values = flags.FLAGS
    out = Path(values.out)
    _require_writable(out)
    names = systems.named_models(list(given[:-1]))
    embedding = None if values.embedding is None else distributions.load(values.embedding)
    visqol = Visqol() if values.visqol else None
    baselines, notes = systems.baselines([name for name in values.baselines if name])
    taken = {name for name, _ in names} & {baseline.name for baseline in baselines}
    if taken:
        raise ConfigError(
            f"a model and a baseline both have the name {taken.pop()!r}; give the model a name, as in ours=PATH"
        )
    root = given[-1]
    tracks, skipped, timeout = _tracks(root, out)
    tracks = _limited(tracks)
    models = [systems.Model(name, codec.load(path), _name(path), mix=values.mix) for name, path in names]
    for note in notes:
        print(note, flush=True)
    result = evaluate.evaluate(
        [*models, *baselines], tracks, out, title=f"Evaluation on {_name(root)}", sample_rate=values.measure_at,
        preset=None if values.preset is None else PRESETS[values.preset], embedding=embedding, visqol=visqol,
        notes=notes, skipped=skipped, read_timeout=timeout,
    )  # fmt: skip
    print("\n".join(_lines(result)))
    print(f"{result['files']} files evaluated, {len(result['skipped'])} skipped; see {out / 'report.html'}")


def _limited(tracks):
    """Return at most `--limit` tracks, spread evenly over all."""
    limit = flags.FLAGS.limit
    if limit is None or limit >= len(tracks):
        return tracks
    return [tracks[i * len(tracks) // limit] for i in range(limit)]


def _name(place):
    """Return the name of a file or folder. A URL is returned unchanged."""
    return place if remote.is_url(place) else Path(place).resolve().name


def _tracks(root, out):
    """Return the tracks to evaluate.

    Returns:
      The tracks, `(name, reason)` of each skipped file, and the read timeout in seconds.
    """
    values = flags.FLAGS
    path = Path(root)
    if not remote.is_url(root) and path.is_file() and root.lower().endswith(audio_file.EXTENSIONS):
        try:
            return [Track(path.name, audio_file.probe(path, allow_silence=True))], [], 0.0
        except DataError as error:
            raise DataError(f"{printable(path)}: {error}") from error
    found, timeout = _catalog(root, leave_out=[out])
    sides = {"train": found.train, "validation": found.validation}
    chosen = found.train + found.validation if values.side == _ALL else sides[values.side]
    tracks = list({track.key: track for track in chosen}.values())
    if not tracks:
        raise DataError(f"{root} has no tracks for --side={values.side}")
    lines = [f"{found.origin}: {len(tracks)} tracks", *(f"warning: {notice}" for notice in catalog.notices(tracks))]
    print("\n".join(lines), flush=True)
    return tracks, list(found.skipped), timeout


def _catalog(root, leave_out=()):
    """Return the catalog of a data set, and the read timeout in seconds. Files that are left out are printed."""
    values = flags.FLAGS
    data = bundled_configs.reference().data
    data.root, data.source, data.channels, data.min_seconds = root, values.source, 1, 0.0
    if values.validation_fraction is not None:
        data.validation_fraction = values.validation_fraction
    found = pipeline.open_catalog(data, leave_out=leave_out)
    for line in catalog.left_out(found.ignored):
        print(line, flush=True)
    return found, pipeline.read_timeout(data, found)


def _lines(result):
    """Yield the lines of a text table with the most important columns."""
    shown = {"si_sdr_db": "SI-SDR", "auraloss_stft": "STFT (auraloss)", "audiotools_mel": "mel (audiotools)",
             "visqol": "ViSQOL", "bits_per_second": "bit/s", "realtime_factor": "real-time factor"}  # fmt: skip
    table = {name: entry["columns"] for name, entry in result["systems"].items()}
    shown = {name: label for name, label in shown.items() if any(name in columns for columns in table.values())}
    width = max(len(name) for name in (*table, "system"))
    yield "  ".join(["system".ljust(width), *shown.values()])
    for system, columns in table.items():
        cells = [f"{columns[name]['mean']:.4g}" if name in columns else "" for name in shown]
        yield "  ".join(
            [system.ljust(width), *(cell.rjust(len(label)) for cell, label in zip(cells, shown.values(), strict=True))]
        )


def _require_writable(out):
    """Raise ConfigError if the output folder cannot be written.

    Called before the work starts.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out={printable(out)} is a file; give a folder to write to")
    try:
        atomic.require_writable(out / "report.html")
    except OSError as error:
        raise ConfigError(f"--out={printable(out)} cannot be written: {error.strerror or error}") from error


def _define_probe():
    codec.define_codec_flags()
    _define_data()
    what = "maximum number of tracks on each side of the split, spread evenly over all"
    flags.DEFINE_integer("limit", 50, what, lower_bound=1)
    flags.DEFINE_float("seconds", 2.0, "audio of each crop", lower_bound=0.0)
    flags.DEFINE_integer("steps", 500, "training steps of the transformer", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "seed of the transformer's training", lower_bound=0, upper_bound=2**32 - 1)
    flags.DEFINE_string("json", None, "file for the results as JSON")


def _probe(*given):
    values, root = flags.FLAGS, given[-1]
    names = systems.named_models(list(given[:-1]))
    if values.json is not None:
        try:
            atomic.require_writable(Path(values.json))
        except OSError as error:
            raise ConfigError(f"--json={printable(values.json)}: {error.strerror or error}") from error
    found, timeout = _catalog(root)
    sides = [_limited(side) for side in (found.train, found.validation)]
    if {track.key for track in sides[0]} & {track.key for track in sides[1]}:
        raise DataError(f"{root} has one track; the probe trains on some files and needs others to validate on")
    print(f"{found.origin}: {len(sides[0])} to train on, {len(sides[1])} for validation", flush=True)
    progress = functools.partial(tqdm.tqdm, dynamic_ncols=True)
    encoded, crops = {}, {}
    for name, path in names:
        loaded = codec.load(path)
        crops[name] = flow_probe.crop_shape(loaded, values.seconds)
        shown = progress([*sides[0], *sides[1]], unit="file", desc=name)
        encoded[name], skipped = flow_probe.encode(loaded, shown, mix=values.mix, read_timeout=timeout)
        print("".join(f"{name}: skipped {key}: {reason}\n" for key, reason in skipped), end="", flush=True)
    common = set.intersection(*map(set, encoded.values()))  # all models get the same files
    results = {}
    for name, latents in encoded.items():
        train, validation = ([z for track in side if track.key in common for z in latents[track.key]] for side in sides)
        results[name] = flow_probe.probe(
            train, validation, crop=crops[name], steps=values.steps, seed=values.seed,
            progress=functools.partial(progress, unit="step", desc=name),
        )  # fmt: skip
    print("\n".join(_probe_lines(results)))
    if values.json is not None:
        with atomic.replacing(Path(values.json)) as temporary:
            report = {name: dataclasses.asdict(each) | {"crop": each.crop._asdict()} for name, each in results.items()}
            temporary.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _probe_lines(results):
    """Yield the lines of a text table of the probe's results."""
    rows = [("model", "relative loss", "loss per element", "without context", "latents per crop")]
    for name, found in results.items():
        relative = f"{found.relative_loss:.4f} +- {found.relative_standard_error:.4f}"
        loss = f"{found.loss:.4f} +- {found.standard_error:.4f}"
        size = f"{found.crop.frames} x {found.crop.latent_dim}"
        rows.append((name, relative, loss, f"{found.independent_loss:.4f}", size))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _define_serve():
    codec.define_codec_flags()
    flags.DEFINE_string("host", "127.0.0.1", "address to listen on; by default only this machine can open the page")
    flags.DEFINE_integer("port", 7860, "port of the page; 0 for a free one", lower_bound=0, upper_bound=65535)
    flags.DEFINE_integer("max_upload_mb", 1024, "maximum size of a file", lower_bound=1, upper_bound=_MAX_MB)


def _serve(path):
    values = flags.FLAGS
    server.require_gradio()
    models = Models(path, codec.load)
    with (
        _until_a_signal() as wait,
        server.running(models, host=values.host, port=values.port, max_upload_mb=values.max_upload_mb) as url,
    ):
        count = len(models.names())
        print(f"{url} serves {count} model{'' if count == 1 else 's'}; Ctrl-C stops it", flush=True)
        if not server.is_loopback(values.host):
            print(f"anyone who can reach {values.host} can use the page: there is no password", flush=True)
        wait()
        print("stopping", flush=True)
    # Python waits for all threads at exit, and a library's thread may never end. The page is closed, so exit anyway.
    end = threading.Timer(_AFTER, os._exit, (0,))
    end.daemon = True
    end.start()


@contextlib.contextmanager
def _until_a_signal():
    """A context with a function that waits for SIGINT, SIGTERM or SIGHUP."""
    heard = []
    signals = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup ignores it
        signals.append(signal.SIGHUP)
    before = {number: signal.signal(number, lambda *_: heard.append(True)) for number in signals}

    def wait():
        # A lock's wait() would miss a signal that arrives just before it, until the next signal.
        while not heard:
            time.sleep(0.2)

    try:
        yield wait
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


EVALUATE = Command(
    name="evaluate",
    details="""\
MODEL is a saved model, a workdir, or a torch, Lightning or safetensors file. NAME=MODEL gives it a name. ROOT is a file
or a value of config.data.root: a folder, a manifest, shards, MUSDB18-HQ, GTZAN, or a URL.""",
    main=_evaluate,
    positional=("MODEL...", "ROOT"),
    define_flags=_define,
    interrupted="files.jsonl has the results so far; the tables and the page were not written",
)
PROBE_LATENTS = Command(
    name="probe_latents",
    details="""\
MODEL is a saved model, a workdir, or a torch, Lightning or safetensors file. NAME=MODEL gives it a name. ROOT is a
value of config.data.root, as in `evaluate`. A small rectified-flow transformer is trained on the latents of its
training side, and measured on the other. The relative loss is the share that context does not explain.""",
    main=_probe,
    positional=("MODEL...", "ROOT"),
    define_flags=_define_probe,
    interrupted="nothing was written",
)
SERVE = Command(
    name="serve",
    details="""\
MODEL is a saved model, a workdir, or a torch, Lightning or safetensors file. For a folder, the page offers all models
in it by name. The page needs gradio, from the extra ui: pip install -e '.[ui]'.""",
    main=_serve,
    positional=("MODEL_OR_FOLDER",),
    define_flags=_define_serve,
    interrupted="the page is closed",
)
