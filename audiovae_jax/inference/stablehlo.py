"""Exports encoder and decoder as StableHLO, to run with JAX on CPU, CUDA or TPU.

The exports are serialized `jax.export` artifacts that contain the weights. They accept any batch size and any whole
number of hops. The folder's `export.json` describes inputs and outputs.

Releases of JAX load an export for about six months after the release that wrote it. `export.json` has that date.
"""

import datetime
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from audiovae_jax.errors import CheckpointError
from audiovae_jax.inference.codec import Codec
from audiovae_jax.models.audio_vae import AudioVAE
from audiovae_jax.storage import atomic

PLATFORMS = ("cpu", "cuda", "tpu")
_KNOWN_PLATFORMS = (*PLATFORMS, "rocm")
MANIFEST = "export.json"
_WINDOW = datetime.timedelta(days=180)  # https://docs.jax.dev/en/latest/export/export.html, compatibility guarantees


def export_stablehlo(codec: Codec, target: str | Path, platforms: tuple[str, ...] = PLATFORMS) -> dict:
    """Export the encoder and decoder of a codec to a new folder.

    The folder contains `encoder.jax_export`, `decoder.jax_export` and `export.json`.

    The encoder maps `[batch, hop * n, channels]` float32 to the calibrated mean `[batch, frames, latent_dim]`. The
    decoder maps this mean to `[batch, samples, channels]`.

    Args:
      codec: the model.
      target: the folder.
      platforms: any of "cpu", "cuda", "rocm", "tpu".

    Returns:
      The contents of `export.json`.

    Raises:
      CheckpointError: the folder exists or cannot be written, a platform is unknown, or the model cannot be lowered
        for it.
    """
    target = Path(target)
    unknown = [name for name in platforms if name not in _KNOWN_PLATFORMS]
    if unknown or not platforms:
        raise CheckpointError(f"platforms={','.join(platforms)}: choose from {', '.join(_KNOWN_PLATFORMS)}")
    if target.exists():
        raise CheckpointError(f"{target} exists; give another folder")
    try:
        atomic.require_writable(target)
    except OSError as error:
        raise CheckpointError(f"{target} cannot be written: {error.strerror or error}; give another folder") from error
    model, hop = codec.model, codec.model.hop_length
    variables = jax.tree.map(np.asarray, codec.variables)

    def encode(audio):
        return model.apply(variables, audio, deterministic=True, method=AudioVAE.encode).z

    def decode(z):
        return model.apply(variables, z, method=AudioVAE.decode)

    least = -(-model.min_length // hop)
    today = datetime.datetime.now(datetime.UTC).date()
    shapes = {
        "encoder": (encode, f"batch, {hop}*n, {model.in_channels}", least),
        "decoder": (decode, f"batch, n, {model.latent_dim}", 1),
    }
    manifest = {
        "format": 1,
        "jax": jax.__version__,
        "date": today.isoformat(),
        "export_again_by": (today + _WINDOW).isoformat(),
        "platforms": list(platforms),
        "fingerprint": codec.fingerprint,
        "sample_rate": codec.sample_rate,
        "hop_length": hop,
        "channels": model.in_channels,
        "latent_dim": model.latent_dim,
        "dtype": "float32",
        "least_hops": least,
    }
    try:
        with atomic.replacing_folder(target) as temporary:
            temporary.mkdir()
            for name, (function, shape, least_n) in shapes.items():
                scope = export.SymbolicScope([f"n >= {least_n}"])
                spec = jax.ShapeDtypeStruct(export.symbolic_shape(shape, scope=scope), jnp.float32)
                exported = export.export(jax.jit(function), platforms=platforms)(spec)
                (temporary / f"{name}.jax_export").write_bytes(exported.serialize())
                (output,) = exported.out_avals
                manifest[name] = {"file": f"{name}.jax_export", "in": f"[{shape}]", "out": str(list(output.shape))}
            (temporary / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    except (OSError, ValueError, NotImplementedError) as error:
        raise CheckpointError(f"{target} was not written: {str(error).splitlines()[0]}") from error
    return manifest


def is_export(path: str | Path) -> bool:
    """Whether a path is a folder that `export_stablehlo` wrote."""
    return (Path(path) / MANIFEST).is_file()


def inspect_export(folder: str | Path, today: datetime.date | None = None) -> dict:
    """Describe an export, and whether the installed JAX loads it.

    The other entries are those of its `export.json`.

    Args:
      folder: written by `export_stablehlo`.
      today: the current date.

    Raises:
      CheckpointError: a file is missing or damaged.
    """
    folder = Path(folder)
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        contents = [(folder / manifest[name]["file"]).read_bytes() for name in ("encoder", "decoder")]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise CheckpointError(f" is not an intact export ({error}); export the model again", path=folder) from error
    loads = "yes"
    try:
        for content in contents:
            export.deserialize(bytearray(content))
    except Exception as error:  # of flatbuffers or StableHLO
        reason = str(error).strip().split("\n")[0]
        loads = f"no ({type(error).__name__}: {reason}); export the model again"
    else:
        # Exports of older versions of this library have no date.
        if (today or datetime.date.today()).isoformat() > manifest.get("export_again_by", ""):
            loads = "yes, but newer releases may not; export the model again"
    return {"path": str(folder), "kind": "StableHLO export", f"loads with jax {jax.__version__}": loads, **manifest}
