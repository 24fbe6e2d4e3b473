"""`make_shards` and `convert_musdb18`: data sets made ready for training."""

import os
from pathlib import Path

import ml_collections
from absl import flags

from audiovae_jax.commands import bundled_configs
from audiovae_jax.commands.command import Command
from audiovae_jax.datasets import catalog, musdb18_stems, shard_writer, sharding
from audiovae_jax.feeding import pipeline


def _shards_flags():
    flags.DEFINE_float("record_seconds", 4.0, "of audio in a record: what a crop reads at least", lower_bound=0.1)
    flags.DEFINE_integer("shard_megabytes", 1024, "of 16-bit audio in a shard, before FLAC", lower_bound=1)
    # By default as configs/base.py has it for training.
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
        data.channels = 1  # to which all that there is can be adapted; shards keep what files have
    parts = []
    for root in roots:
        of_root = ml_collections.ConfigDict(data)
        of_root.root = root
        sharding.require_apart(root, Path(output))
        parts.append(pipeline.open_catalog(of_root))
    found = parts[0] if len(parts) == 1 else catalog.joined(parts)
    seconds = sum(track.seconds for track in {track.key: track for track in (*found.train, *found.validation)}.values())
    print(f"{len(found.train)} to train on and {len(found.validation)} for validation, of {found.origin}")
    written = shard_writer.write(
        found,
        Path(output),
        record_seconds=values.record_seconds,
        shard_bytes=values.shard_megabytes * 1_000_000,
        num_threads=data.num_threads,
    )
    size = sum(path.stat().st_size for path in Path(output).glob("*.arrayrecord"))
    print(f"done: {written} tracks, {seconds / 3600:.2f} h, {size / 1e9:.3f} GB in {output}")


def _convert_flags():
    flags.DEFINE_integer("num_workers", min(4, os.cpu_count() or 1), "songs that are converted at once", lower_bound=1)


def _convert(root, out):
    musdb18_stems.convert(Path(root), Path(out), num_workers=flags.FLAGS.num_workers)


MAKE_SHARDS = Command(
    name="make_shards",
    description="""Shards of a data set, in which a crop reads little wherever they lie.

IN is a folder, a manifest, tars, MUSDB18-HQ or GTZAN, here or behind a URL; OUT a folder of this machine, to be
copied to a bucket as it is. Nothing of the audio is lost: what FLAC cannot hold exactly stays floating point.
Stopped, the same command goes on. Train with --config.data.root=OUT; the crops are those of IN, to the bit.""",
    main=_make_shards,
    positional=("IN...", "OUT"),
    define_flags=_shards_flags,
)
CONVERT_MUSDB18 = Command(
    name="convert_musdb18",
    description="""Convert MUSDB18 (.stem.mp4) to the layout of MUSDB18-HQ, once; needs ffmpeg.

ROOT holds train/ and test/ as they are shared; OUT gets a folder of five wav files for each song.""",
    main=_convert,
    positional=("ROOT", "OUT"),
    define_flags=_convert_flags,
    interrupted="songs that were made are whole, and the same command goes on from there",
)
