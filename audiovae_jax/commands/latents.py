"""The command `encode_dataset`: encode a data set, for training on its latents."""

from pathlib import Path

import jax
from absl import flags

from audiovae_jax.commands import bundled_configs, codec
from audiovae_jax.commands.arguments import MODEL, Command
from audiovae_jax.data.audio import remote
from audiovae_jax.data.feeding import pipeline
from audiovae_jax.data.sets import catalog, sharding, sources
from audiovae_jax.errors import ConfigError, DataError
from audiovae_jax.inference import latent_records, latent_writer


def _define():
    codec.define_codec_flags()
    form = latent_writer.LatentFormat()
    flags.DEFINE_enum(
        "what",
        form.what,
        list(latent_records.ARRAYS),
        "values to store: mean and log-variance (posterior), or a sample",
    )
    flags.DEFINE_enum("storage_dtype", form.storage_dtype, list(latent_records.DTYPES), "dtype of the stored latents")
    flags.DEFINE_integer("seed", form.seed, "seed of the samples", lower_bound=0)
    flags.DEFINE_bool("mix", form.mix, "mix channels down or up to the model's")
    flags.DEFINE_integer("record_frames", form.record_frames, "latent frames per record", lower_bound=1)
    flags.DEFINE_integer("shard_megabytes", form.shard_bytes // 10**6, "approximate MB per shard", lower_bound=1)
    flags.DEFINE_enum("source", sources.AUTO, list(sources.NAMES), "type of ROOT; auto detects it")
    what = "fraction of the tracks to validate on, if ROOT has no split; default as in training"
    flags.DEFINE_float("validation_fraction", None, what, lower_bound=0.0, upper_bound=1.0)
    flags.DEFINE_integer("num_threads", 2, "shards written at once", lower_bound=1)
    flags.DEFINE_integer("host_index", None, "index of this host, from 0; default JAX's process index")
    flags.DEFINE_integer("host_count", None, "number of hosts that share the work and OUT; default JAX's process count")


def _encode_dataset(model, root, target):
    values = flags.FLAGS
    folder = Path(remote.local_path(target))
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{target} is a file; give a folder to write to")
    sharding.require_apart(root, folder)
    if (values.host_index is None) != (values.host_count is None):
        raise ConfigError("give --host_index and --host_count together, or neither")
    index = jax.process_index() if values.host_index is None else values.host_index
    count = jax.process_count() if values.host_count is None else values.host_count
    if not 0 <= index < count:
        raise ConfigError(f"--host_index={index} must be from 0 to {count - 1} with --host_count={count}")
    form = latent_writer.LatentFormat(
        what=values.what,
        storage_dtype=values.storage_dtype,
        seed=values.seed,
        mix=values.mix,
        record_frames=values.record_frames,
        shard_bytes=values.shard_megabytes * 10**6,
    )
    loaded = codec.load(model)
    data = bundled_configs.reference().data
    data.root, data.source, data.channels = root, values.source, loaded.model.in_channels
    data.sample_rate = loaded.sample_rate
    if values.validation_fraction is not None:
        data.validation_fraction = values.validation_fraction
    found = pipeline.open_catalog(data, leave_out=[folder])
    notices = [f"warning: {each}" for each in catalog.notices(found.train + found.validation)]
    print("\n".join([found.origin, *notices, *catalog.left_out(found.ignored)]))
    latent_writer.write(
        loaded, found, folder, form, host_index=index, host_count=count, num_threads=values.num_threads,
        read_timeout=pipeline.read_timeout(data, found),
    )  # fmt: skip


ENCODE_DATASET = Command(
    name="encode_dataset",
    details="""\
MODEL is a saved model, a workdir, or a torch, Lightning or safetensors file. ROOT is a value of config.data.root: a
folder, a manifest, shards, tars, MUSDB18-HQ, GTZAN, or a URL. OUT is a folder. Complete shards in it are kept.""",
    main=_encode_dataset,
    positional=(MODEL, "ROOT", "OUT"),
    define_flags=_define,
)
