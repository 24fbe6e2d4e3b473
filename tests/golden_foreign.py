"""The models of other projects in golden files; needs no torch."""

from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent / "golden"
# Arguments of the modules in `foreign_reference`.
MODELS = {
    "diffusers": {"base": 6, "mults": (1, 2), "strides": (2, 4), "latent": 3},
    "stable_audio_tools": {"base": 4, "mults": (1, 2), "strides": (3, 2), "latent": 3},
    "elu": {"base": 4, "mults": (1, 2), "strides": (3, 2), "latent": 3, "snake": False, "tanh": True},
    "dac": {"base": 3, "decoder_base": 5, "strides": (2, 5)},
    "dacvae": {"base": 3, "decoder_base": 5, "strides": (2, 4), "latent": 3},
}
RATE = 16000


def config(name: str) -> dict:
    """Return the project's config of a model."""
    model = MODELS[name]
    if name == "diffusers":
        return {
            "_class_name": "AutoencoderOobleck",
            "_diffusers_version": "0.42.1",
            "encoder_hidden_size": model["base"],
            "downsampling_ratios": list(model["strides"]),
            "channel_multiples": list(model["mults"]),
            "decoder_channels": model["base"],
            "decoder_input_channels": model["latent"],
            "audio_channels": 2,
            "sampling_rate": RATE,
        }
    if name.startswith("dac"):
        decoder_dim = model["decoder_base"] * 2 ** len(model["strides"])
        rates = {"encoder_rates": list(model["strides"]), "decoder_rates": list(model["strides"][::-1])}
        return {"kwargs": {"encoder_dim": model["base"], "decoder_dim": decoder_dim, "sample_rate": RATE, **rates}}
    options = {
        "channels": model["base"],
        "c_mults": list(model["mults"]),
        "strides": list(model["strides"]),
        "use_snake": model.get("snake", True),
    }
    decoder = {"out_channels": 2, **options, "latent_dim": model["latent"], "final_tanh": model.get("tanh", False)}
    return {
        "model_type": "autoencoder",
        "sample_size": 6000,
        "sample_rate": RATE,
        "audio_channels": 2,
        "model": {
            "encoder": {"type": "oobleck", "config": {"in_channels": 2, **options, "latent_dim": 2 * model["latent"]}},
            "decoder": {"type": "oobleck", "config": decoder},
            "bottleneck": {"type": "vae"},
            "latent_dim": model["latent"],
            "downsampling_ratio": int(np.prod(model["strides"])),
            "io_channels": 2,
        },
    }


def load(name: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return `(state dict, inputs and outputs)` of a golden file."""
    io = np.load(FOLDER / f"foreign_{name}.npz")
    arrays = {key: io[key] for key in io.files}
    weights = {key.removeprefix("weights/"): arrays.pop(key) for key in io.files if key.startswith("weights/")}
    return weights, arrays
