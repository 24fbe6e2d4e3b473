"""Writes tests/golden/foreign_*.npz from the projects' own packages: `python tests/make_foreign_golden.py`.

It needs torch, diffusers 0.42.1, stable-audio-tools 0.0.19 and descript-audio-codec 1.0.0, with what they import.
DACVAE is not on the package index, so its file comes from `foreign_reference`. The other modules there are compared
here with the packages: they must load the same state dict, and give the same numbers.
"""

import foreign_reference as ref
import numpy as np
import torch
from dac.model.dac import DAC
from diffusers import AutoencoderOobleck
from golden_foreign import FOLDER, MODELS, config
from stable_audio_tools.models.autoencoders import create_autoencoder_from_config


def _drawn(module):
    """Draw every parameter, so that each one matters."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("weight_g"):
                parameter.copy_(0.6 + 0.2 * noise.abs())
            else:
                parameter.add_(0.1 * noise)
    return module.eval()


def _outputs(module, parameters_of, decode, name):
    generator = torch.Generator().manual_seed(2)
    audio = 0.3 * torch.randn(2, 1 if name.startswith("dac") else 2, 601, generator=generator)
    with torch.no_grad():
        parameters = parameters_of(audio)
        mean, std = parameters, torch.zeros(())
        if name != "dac":
            mean, scale = parameters.chunk(2, dim=1)
            std = torch.nn.functional.softplus(scale) + 1e-4
        z = torch.randn(mean.shape, generator=generator)
        return {"audio": audio, "mean": mean, "std": std, "z": z, "decoded": decode(z)}


def _write(name, module, parameters_of, decode):
    outputs = _outputs(module, parameters_of, decode, name)
    arrays = {f"weights/{key}": value for key, value in module.state_dict().items()} | outputs
    arrays = {key: value.numpy() for key, value in arrays.items()}
    np.savez_compressed(FOLDER / f"foreign_{name}.npz", **arrays)
    return outputs


def _compare(name, module, outputs, reference):
    state = {key: value for key, value in module.state_dict().items() if not key.startswith("quantizer.")}
    reference.load_state_dict(state, strict=True)
    again = _outputs(reference.eval(), reference.encoder, reference.decoder, name)
    for key, value in outputs.items():
        torch.testing.assert_close(again[key], value, msg=f"{name} {key}")


def main():
    given = {key: value for key, value in config("diffusers").items() if not key.startswith("_")}
    module = _drawn(AutoencoderOobleck(**given))
    outputs = _write("diffusers", module, module.encoder, module.decoder)
    _compare("diffusers", module, outputs, ref.Diffusers(**MODELS["diffusers"]))
    for name in ("stable_audio_tools", "elu"):
        module = _drawn(create_autoencoder_from_config(config(name)))
        outputs = _write(name, module, module.encoder, module.decoder)
        _compare(name, module, outputs, ref.stable_audio_tools(**MODELS[name]))
    module = _drawn(DAC(**config("dac")["kwargs"], n_codebooks=1, codebook_size=4, codebook_dim=2))
    outputs = _write("dac", module, module.encoder, module.decoder)
    _compare("dac", module, outputs, ref.dac(**MODELS["dac"]))
    module = _drawn(ref.DACVAE(**MODELS["dacvae"]))
    _write("dacvae", module, module.parameters_of, module.decode)


if __name__ == "__main__":
    main()
