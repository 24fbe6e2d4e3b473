"""Writes tests/golden/ from the torch reference: `python tests/make_golden.py [NAME ...]` (needs torch).

Each npz file has weights under `weights/` in torch's names and layout, inputs and outputs. Large weights are drawn
from a seed instead. Gradients are computed in float64.

`original_*.npz` are not written here. They come from the PyTorch system itself.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch_reference as ref
import torch_training
from golden_configs import BAND, DISCRIMINATOR, MICRO_DISCRIMINATOR, MICRO_MODEL, MODEL, SCALE, seeded_weights

FOLDER = Path(__file__).parent / "golden"


def _audio(seed, length=1000):
    generator = torch.Generator().manual_seed(seed)
    return (0.3 * torch.randn(2, 2, length, generator=generator)).double()  # exact in float32 too


def _randomize(module):
    """Replace special initial values of parameters, so that each one matters."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
        if hasattr(module, "latent_std"):
            module.latent_std.abs_()
    return module


def _weights(module):
    return {f"weights/{k}": v.numpy().astype(np.float32) for k, v in module.state_dict().items()}


def _save(name, arrays):
    FOLDER.mkdir(exist_ok=True)
    arrays = {k: v.detach().numpy() if isinstance(v, torch.Tensor) else v for k, v in arrays.items()}
    arrays = {k: v.astype(np.float32) if v.dtype == np.float64 else v for k, v in arrays.items()}
    np.savez_compressed(FOLDER / f"{name}.npz", **arrays)


def model():
    torch.manual_seed(0)
    module = _randomize(ref.AudioVAE(**MODEL)).double()
    audio = _audio(2)
    eps = torch.randn_like(module.encode(audio)[1], dtype=torch.float32).double()
    reconstruction, z, mean, logvar = module(audio, eps)
    _save(
        "model",
        {**_weights(module), "audio": audio, "eps": eps, "reconstruction": reconstruction, "z": z, "mean": mean,
         "logvar": logvar},
    )  # fmt: skip


def discriminator():
    torch.manual_seed(0)
    module = _randomize(ref.EnCodecDiscriminator(**DISCRIMINATOR)).double()
    _save("discriminator", {**_weights(module), **_discriminator(module, _audio(3), _audio(4))})


def scale():
    _seeded("scale", ref.MultiScaleDiscriminator(SCALE["msd_scales"]), _audio(3), _audio(4))


def band():
    module = ref.BandSplitDiscriminator(BAND["n_fft"], BAND["hop_length"], BAND["band_ranges"])
    _seeded("band", module, _audio(3, 4096)[:, :1], _audio(4, 4096)[:, :1])


def _seeded(name, module, real, fake):
    shapes = {key: list(value.shape) for key, value in module.state_dict().items()}
    module.load_state_dict({key: torch.from_numpy(value) for key, value in seeded_weights(shapes).items()})
    arrays = _discriminator(module.double(), real, fake)
    _save(name, {"weight_shapes": np.array(json.dumps(shapes)), **arrays})


def _discriminator(module, real, fake):
    """Inputs, logits, losses and gradients of a discriminator."""
    fake = fake.clone().requires_grad_()
    real_logits, real_maps = module(real)
    fake_logits, fake_maps = module(fake)
    g_adv, fm = ref.hinge_g(fake_logits), ref.feature_matching(real_maps, fake_maps)
    arrays = {"real": real, "fake": fake, "g_adv": g_adv, "fm": fm}
    arrays |= {f"real_logits_{i}": x for i, x in enumerate(real_logits)}
    arrays |= {f"fake_logits_{i}": x for i, x in enumerate(fake_logits)}
    arrays["grad_fake"] = torch.autograd.grad(g_adv + 10 * fm, fake, retain_graph=True)[0]
    arrays["d_loss"] = ref.hinge_d(real_logits, fake_logits)
    # Only the real half's loss. In the sum with the other half, the last layer's gradients cancel.
    half = sum(torch.relu(1 - logits).mean() for logits in real_logits) / len(real_logits)
    names = [name for name, _ in module.named_parameters()]
    for name, grad in zip(names, torch.autograd.grad(half, list(module.parameters())), strict=True):
        arrays[f"gradnorm/{name}"] = grad.norm()
    return arrays


def losses():
    target = _audio(5, 4096)
    prediction = (0.7 * target + 0.5 * _audio(6, 4096)).float().double().requires_grad_()
    flat = (prediction.flatten(0, 1), target.flatten(0, 1))
    quarter = {"hops": None, "wins": None}
    values = {
        "sum_and_difference_stft": ref.sum_and_difference_stft(
            prediction, target, ffts=(512, 128, 32), w_sc=0, w_lin=1, weighted=44100, **quarter
        ),
        "multi_resolution_stft": ref.multi_resolution_stft(*flat),
        "multi_scale_mel": ref.multi_scale_mel(prediction, target),
        "multi_scale_mel_batch": ref.multi_scale_mel(prediction, target, convergence="batch"),
    }
    arrays = {"target": target, "prediction": prediction, **values}
    for name, value in values.items():
        grad = torch.autograd.grad(value, prediction, retain_graph=True)[0]
        arrays |= {f"{name}/grad_norm": grad.norm(), f"{name}/grad_head": grad[0, :, :64]}
    _save("losses", arrays)


def checkpoints():
    """Save a run of three batches as the system and Lightning do, in both of torch's formats."""
    torch.manual_seed(0)
    model, discriminator = ref.AudioVAE(**MICRO_MODEL), ref.EnCodecDiscriminator(**MICRO_DISCRIMINATOR)
    model.latent_mean.data.normal_()
    model.latent_std.data.uniform_(0.5, 2)
    run = torch_training.Run(model, discriminator, torch.nn.functional.l1_loss, num_steps=100)
    for seed in range(3):
        run.step(_audio(seed).float())
    torch.save(run.lightning_checkpoint(MICRO_MODEL), FOLDER / "lightning.ckpt")
    torch.save(torch_training.save_model_checkpoint(run, MICRO_MODEL), FOLDER / "save_model.pt")
    torch.save(model.state_dict(), FOLDER / "bare_legacy.pt", _use_new_zipfile_serialization=False)
    with torch.no_grad():
        audio = _audio(9, 400).float()
        z, mean, logvar = model.encode(audio)
        logits, _ = discriminator(audio)
        arrays = {"audio": audio, "z": z, "mean": mean, "logvar": logvar, "decoded": model.decode(z)}
    _save("checkpoints", arrays | {f"logits_{i}": x for i, x in enumerate(logits)})


if __name__ == "__main__":
    made = {f.__name__: f for f in (model, discriminator, scale, band, losses, checkpoints)}
    for name in sys.argv[1:] or made:
        made[name]()
