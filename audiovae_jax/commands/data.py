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
from audiovae_jax.data.sets import catalog, musdb18_stems, shard_writer, sharding
from audiovae_jax.data.survey import page, survey, text
from audiovae_jax.errors import ConfigError, DataError, printable
from audiovae_jax.run import bucket_lock
from audiovae_jax.storage import atomic


def _shards_flags():
    flags.DEFINE_float("record_seconds", 4.0, "of audio in a record: what a crop reads at least", lower_bound=0.1)
    flags.DEFINE_integer("shard_megabytes", 1024, "of 16-bit audio in a shard, before FLAC", lower_bound=1)
    # The default is the value in configs/base.py.
    flags.DEFINE_float("validation_fraction", None, "of the files, where the data set has no split of its own")
    flags.DEFINE_float("mixture_share", None, "of MUSDB18's crops; the others are of a single stem")
    flags.DEFINE_float("min_seconds", None, "shorter files are left out", lower_bound=0.0)
    flags.DEFINE_string("source", None, "what the inputs are; auto recognises them")
    flags.DEFINE_integer("num_threads", None, "that read and encode", lower_bound=1)


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
    flags.DEFINE_integer("num_workers", min(4, os.cpu_count() or 1), "songs that are converted at once", lower_bound=1)


def _convert(root, out):
    musdb18_stems.convert(Path(root), Path(out), num_workers=flags.FLAGS.num_workers, say=print)


def _check_flags():
    arguments.define_config_flag()
    flags.DEFINE_string("workdir", None, "of the run that is planned; default runs/<config name>, as train has it")
    flags.DEFINE_integer("limit", 500, "listen to no more tracks than this, spread evenly over all", lower_bound=1)
    flags.DEFINE_float("seconds", 5.0, "to measure how fast crops are read; 0 leaves it out", 0, 3600)
    flags.DEFINE_string("json", None, "file for the report as JSON")
    flags.DEFINE_string("page", None, "file for the report as a page of plots: .html, with tables, or .png")


def _check(root=None):
    from audiovae_jax.run import start  # not at the top: it loads Orbax, which --help does not need

    values = flags.FLAGS
    _require_writable(values.json, values.page)
    if root is not None:
        values.config.data.root = root
    workdir = bucket_lock.as_workdir(values.workdir or Path("runs") / arguments.config_name())
    config = arguments.read_config(workdir)
    configuration.check(config, device_count=1)
    if config.data.root is None and not config.data.mix:
        raise ConfigError("there is nothing to look at: give a folder, a manifest or a URL, as check_data ROOT")
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
    if found.refusal is not None:
        raise DataError(f"training would refuse: {found.refusal}")


def _require_writable(*paths):
    """Raise ConfigError if an output cannot be written. Called before the work starts."""
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
    details="ROOT takes the place of config.data.root. The status is 1 where training would refuse.",
    main=_check,
    positional=("[ROOT]",),
    define_flags=_check_flags,
    interrupted="no report was made",
)
MAKE_SHARDS = Command(
    name="make_shards",
    details="""\
ROOT is a folder, a manifest, tars, MUSDB18-HQ or GTZAN, here or behind a URL; OUT a folder of this machine, to be
copied to a bucket as it is. Nothing of the audio is lost: what FLAC cannot hold exactly stays floating point.
If it is stopped, run the same command to resume. Train with --config.data.root=OUT; the crops are those of ROOT, to the
bit.""",
    main=_make_shards,
    positional=("ROOT...", "OUT"),
    define_flags=_shards_flags,
)
CONVERT_MUSDB18 = Command(
    name="convert_musdb18",
    details="IN holds train/ and test/ as they are shared; OUT gets a folder of five wav files for each song.",
    main=_convert,
    positional=("IN", "OUT"),
    define_flags=_convert_flags,
    interrupted="the songs converted so far are complete; run the same command to resume",
)
