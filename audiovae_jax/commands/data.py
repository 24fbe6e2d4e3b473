"""The commands `check_data`, `make_shards` and `convert_musdb18`."""

import dataclasses
import json
import os
from pathlib import Path

import ml_collections
from absl import flags

from audiovae_jax.commands import arguments, bundled_configs
from audiovae_jax.commands.arguments import Command
from audiovae_jax.config import configuration
from audiovae_jax.data.feeding import pipeline
from audiovae_jax.data.sets import catalog, musdb18_stems, shard_writer, sharding, sources
from audiovae_jax.data.survey import page, repair, survey, text
from audiovae_jax.errors import ConfigError, DataError, printable
from audiovae_jax.run import bucket_lock
from audiovae_jax.storage import atomic


def _shards_flags():
    flags.DEFINE_float(
        "record_seconds", 4.0, "seconds of audio per record, the minimum that a crop reads", lower_bound=0.1
    )
    flags.DEFINE_integer(
        "shard_megabytes", 1024, "MB of 16-bit audio per shard, before FLAC compression", lower_bound=1
    )
    # The default is the value in configs/base.py.
    flags.DEFINE_float(
        "validation_fraction", None, "fraction of the files to validate on, if the data set has no split"
    )
    flags.DEFINE_float("mixture_share", None, "fraction of MUSDB18 crops from mixtures; the others are single stems")
    flags.DEFINE_float("min_seconds", None, "length in seconds below which files are left out", lower_bound=0.0)
    flags.DEFINE_string("source", None, "type of the inputs; auto detects it")
    flags.DEFINE_integer("num_threads", None, "threads that read and encode", lower_bound=1)


def _make_shards(*paths):
    *roots, output = paths
    values = flags.FLAGS
    data = bundled_configs.reference().data
    with data.unlocked():
        for name in ("validation_fraction", "mixture_share", "min_seconds", "source", "num_threads"):
            if values[name].value is not None:
                data[name] = values[name].value
        data.channels = 1  # every file can be converted to mono; the shards keep the files' channels
    parts = []
    for root in roots:
        of_root = ml_collections.ConfigDict(data)
        of_root.root = root
        sharding.require_apart(root, Path(output))
        parts.append(pipeline.open_catalog(of_root))
    found = parts[0] if len(parts) == 1 else catalog.joined(parts)
    seconds = sum(track.seconds for track in {track.key: track for track in (*found.train, *found.validation)}.values())
    print(f"{len(found.train)} to train on and {len(found.validation)} for validation, of {found.origin}")
    for notice in catalog.notices((*found.train, *found.validation)):
        print(f"warning: {notice}")
    for line in catalog.left_out(found.ignored):
        print(line)
    written = shard_writer.write(
        found,
        Path(output),
        record_seconds=values.record_seconds,
        shard_bytes=values.shard_megabytes * 1_000_000,
        num_threads=data.num_threads,
        say=print,
    )
    size = sum(path.stat().st_size for path in Path(output).glob("*.arrayrecord"))
    print(f"done: {written} tracks, {seconds / 3600:.2f} h, {size / 1e9:.3f} GB in {output}")


def _convert_flags():
    flags.DEFINE_integer("num_workers", min(4, os.cpu_count() or 1), "songs converted at once", lower_bound=1)


def _convert(root, out):
    musdb18_stems.convert(Path(root), Path(out), num_workers=flags.FLAGS.num_workers, say=print)


def _check_flags():
    arguments.define_config_flag()
    flags.DEFINE_string("workdir", None, "workdir of the planned run; default runs/<config name>, as for train")
    flags.DEFINE_integer("limit", 500, "maximum number of tracks to measure, spread evenly over all", lower_bound=1)
    flags.DEFINE_float("seconds", 5.0, "seconds to measure the reading speed for; 0 skips it", 0, 3600)
    flags.DEFINE_string("json", None, "file for the report as JSON")
    flags.DEFINE_string("page", None, "file for the report as plots: .html (with tables) or .png")
    flags.DEFINE_string("fix", None, "folder for copies of the skipped files with the audio that can be decoded")


def _check(root=None):
    from audiovae_jax.run import start  # imported late, since it loads Orbax, which --help does not need

    values = flags.FLAGS
    _require_writable(values.json, values.page)
    if root is not None:
        values.config.data.root = root
    workdir = bucket_lock.as_workdir(values.workdir or Path("runs") / arguments.config_name())
    config = arguments.read_config(workdir)
    configuration.check(config, device_count=1)
    if config.data.root is None and not config.data.mix:
        raise ConfigError("there is no data to check; give a folder, a manifest or a URL: check_data ROOT")
    data = start.open_data(config, workdir)
    found = survey.make(
        config.data,
        data,
        root=config.data.root or "; ".join(name for name, _ in config.data.mix),
        batch_size=config.batch_size,
        limit=values.limit,
        seconds=values.seconds,
    )
    print("\n".join(text.lines(found)), flush=True)
    try:
        if values.json is not None:
            with atomic.replacing(Path(values.json)) as temporary:
                temporary.write_text(json.dumps(_plain(dataclasses.asdict(found)), indent=2) + "\n")
        if values.page is not None:
            page.write(found, Path(values.page))
    except OSError as error:
        raise DataError(f"the report was not written: {error.strerror or error}") from error
    if values.fix is not None:
        roots = [name for name, _ in config.data.mix] or sources.split_roots(config.data.root)
        for name, copy, note in repair.write(data.catalog.skipped, roots, Path(values.fix)):
            print(f"fixed: {printable(copy)} ({note})" if copy else f"not fixed: {name} ({note})")
    if found.refusal is not None:
        raise DataError(f"training would fail: {found.refusal}")


def _require_writable(*paths):
    """Raise ConfigError if an output cannot be written.

    Called before the work starts.
    """
    if paths[1] is not None and not paths[1].lower().endswith(page.SUFFIXES):
        raise ConfigError(f"--page={paths[1]} must end in {' or '.join(page.SUFFIXES)}")
    for path in filter(None, paths):
        try:
            atomic.require_writable(path)
        except OSError as error:
            raise ConfigError(f"{printable(path)} cannot be written: {error.strerror or error}") from error


def _plain(value):
    """Convert all strings to valid UTF-8, since file names may contain other bytes."""
    if isinstance(value, dict):
        return {_plain(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return printable(value) if isinstance(value, str) else value


CHECK_DATA = Command(
    name="check_data",
    details="ROOT replaces config.data.root. The exit status is 1 if training would fail.",
    main=_check,
    positional=("[ROOT]",),
    define_flags=_check_flags,
    interrupted="no report was made",
)
MAKE_SHARDS = Command(
    name="make_shards",
    details="""\
ROOT is a folder, a manifest, tars, MUSDB18-HQ or GTZAN, on this machine or at a URL. OUT is a local folder, which can
be copied to a bucket unchanged. No audio is lost: audio that FLAC cannot represent exactly is stored as floating point.
After an interruption, run the same command to resume. Train with --config.data.root=OUT. The crops are bit-identical to
those of ROOT.""",
    main=_make_shards,
    positional=("ROOT...", "OUT"),
    define_flags=_shards_flags,
)
CONVERT_MUSDB18 = Command(
    name="convert_musdb18",
    details="IN contains train/ and test/ as published. OUT gets a folder of five wav files per song.",
    main=_convert,
    positional=("IN", "OUT"),
    define_flags=_convert_flags,
    interrupted="the songs converted so far are complete; run the same command to resume",
)
