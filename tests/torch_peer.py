"""The PyTorch system, or diffusers' Oobleck, in its own process. It does one piece of work per line of input.

`audiovae-jax benchmark` starts it, with a job as JSON in its first argument. It writes lines of JSON to standard
output: first its description, then `{"seconds": ..., "peak_bytes": ..., "result": ...}` for each line of input.
"""

import contextlib
import functools
import inspect
import json
import os
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch
import torch_reference as ref
import torch_training


class AlternatingStep:
    """The system's training step: a pass for the generator, then one for the discriminator.

    As its loop does, each pass runs the discriminator on real and on generated audio. While one of the
    two is trained, the other's parameters are frozen (Lightning's `toggle_optimizer`). The generator's
    pass records no gradient for the discriminator on real audio.
    """

    def __init__(self, job, device):
        config = job["config"]
        self.model = _build(ref.AudioVAE, config["model"]).to(device)
        for name in ("latent_mean", "latent_std"):
            getattr(self.model, name).requires_grad_(False)
        self.loss = _weighted(_losses(config["losses"]))
        self.kl_weight = config["kl"]["weight"]
        self.weights = config["adversarial"]
        self.discriminator = None
        if config["use_adversarial"]:
            self.discriminator = _build(ref.EnCodecDiscriminator, config["discriminator"]).to(device)
        self.optimizers = [
            torch.optim.AdamW(module.parameters(), lr=section["learning_rate"], weight_decay=section["weight_decay"])
            for module, section in (
                (self.model, config["optimizer"]),
                (self.discriminator, config["discriminator_optimizer"]),
            )
            if module is not None
        ]
        self.clip = config["optimizer"]["clip_norm"]
        b, t = config["batch_size"], config["data"]["crop_length"]
        self.audio = 0.3 * torch.randn(b, config["model"]["in_channels"], t, device=device)
        self.autocast = _autocast(device, config["model"]["dtype"])
        self.autocast_judge = _autocast(device, config["discriminator"].get("dtype", "float32"))
        if job["compile"]:
            self.forward = torch.compile(self.model)
            self.judge = torch.compile(self.discriminator) if self.discriminator is not None else None
        else:
            self.forward, self.judge = self.model, self.discriminator

    def __call__(self):
        audio = self.audio
        with self.autocast():
            fake, _, mean, logvar = self.forward(audio, _noise(self.model, audio))
            fake = fake.float()
            loss = self.loss(fake, audio) + self.kl_weight * ref.kl_divergence(mean.float(), logvar.float())
        if self.judge is not None:
            self.discriminator.requires_grad_(False)
            with self.autocast_judge():
                with torch.no_grad():
                    _, real_maps = self.judge(audio)
                fake_logits, fake_maps = self.judge(fake)
                loss = loss + self.weights["adversarial_weight"] * ref.hinge_g(fake_logits)
                matching = ref.feature_matching(real_maps, fake_maps)
                loss = loss + self.weights["feature_matching_weight"] * matching
        self._update(self.optimizers[0], self.model, loss)
        if self.judge is None:
            return loss.item()
        self.discriminator.requires_grad_(True)
        with self.autocast_judge():
            loss = ref.hinge_d(self.judge(audio)[0], self.judge(fake.detach())[0])
        self._update(self.optimizers[1], self.discriminator, loss)
        return loss.item()

    def _update(self, optimizer, module, loss):
        optimizer.zero_grad()
        loss.backward()
        if self.clip:
            torch.nn.utils.clip_grad_norm_(module.parameters(), self.clip)
        optimizer.step()


class Learning:
    """Training on the weights, batches and latent noise that `performance.benchmark.learning` writes to a folder."""

    def __init__(self, job, device):
        config, self.folder, self.device = job["config"], Path(job["folder"]), device
        model, discriminator = _build(ref.AudioVAE, config["model"]), None
        if config["use_adversarial"]:
            discriminator = _build(ref.EnCodecDiscriminator, config["discriminator"])
        with np.load(self.folder / "weights.npz") as weights:
            for prefix, module in (("model.", model), ("discriminator.", discriminator)):
                if module is not None:
                    own = {k.removeprefix(prefix): weights[k] for k in weights if k.startswith(prefix)}
                    _load(module.to(device), own)
        self.losses = _losses(config["losses"])
        sections = [config["optimizer"], config["discriminator_optimizer"]]
        self.training = torch_training.Run(
            model,
            discriminator,
            _weighted(self.losses),
            num_steps=config["num_steps"],
            rates=[(section["learning_rate"], section["final_learning_rate"]) for section in sections],
            kl_weight=config["kl"]["weight"],
            kl_warmup_steps=config["kl"]["warmup_steps"],
            adversarial_weight=config["adversarial"]["adversarial_weight"],
            feature_matching_weight=config["adversarial"]["feature_matching_weight"],
            warmup_steps=config["adversarial"]["warmup_steps"],
            settings=[
                {"betas": (x["b1"], x["b2"]), "eps": x["eps"], "weight_decay": x["weight_decay"]} for x in sections
            ],
            clip_norms=[section["clip_norm"] for section in sections],
        )

    def step(self):
        with np.load(self.folder / "batch.npz") as batch:
            audio, noise = (torch.tensor(batch[name], device=self.device) for name in ("audio", "noise"))
        self.training.step(audio, noise)

    def validate(self):
        """Return the metrics of reconstructions from the posterior's mean, averaged over batches."""
        found = []
        with torch.no_grad():
            for audio in torch.tensor(np.load(self.folder / "validation.npy"), device=self.device):
                fake = self.training.model(audio)[0]
                metrics = {name: loss(fake, audio) for name, _, loss in self.losses}
                metrics |= {"waveform_l1": (fake - audio).abs().mean(), "si_sdr_db": _si_sdr(fake, audio)}
                found.append(metrics)
        return {name: float(np.mean([metrics[name].item() for metrics in found])) for name in found[0]}


def _load(module, weights):
    """Load arrays that may lack last axes of size 1. Windows and filterbanks keep the module's values."""
    state = module.state_dict()
    constants = {key for key in state if key.rpartition(".")[2] in ("window", "fb")}
    if wrong := (state.keys() - constants) ^ weights.keys():
        raise SystemExit(f"the weights do not fit the torch reference at {', '.join(sorted(wrong))}")
    whole = {k: torch.tensor(x).reshape(x.shape + (1,) * (state[k].ndim - x.ndim)) for k, x in weights.items()}
    module.load_state_dict(state | whole)


def _si_sdr(prediction, target):
    """Le Roux et al., 2019, in dB, averaged over channels and items."""
    prediction, target = (x - x.mean(-1, keepdim=True) for x in (prediction, target))
    scale = (prediction * target).sum(-1, keepdim=True) / (target.square().sum(-1, keepdim=True) + 1e-8)
    signal, noise = scale * target, prediction - scale * target
    ratio = signal.square().sum(-1) / (noise.square().sum(-1) + 1e-8)
    return (10 * torch.log10(ratio + 1e-8)).mean()


def learning(job, device):
    training = Learning(job, device)
    return {"step": training.step, "validate": training.validate}


def step(job, device):
    return {"step": AlternatingStep(job, device)}


def codec(job, device):
    model = _folded(_build(ref.AudioVAE, job["config"]["model"])).to(device).eval()
    return _codec(job, device, lambda audio: model.encode(audio)[0], model.decode)


def oobleck(job, device):
    from diffusers import AutoencoderOobleck

    settings = job["config"]["model"]
    model = AutoencoderOobleck(
        encoder_hidden_size=settings["base_channels"],
        downsampling_ratios=settings["strides"],
        channel_multiples=settings["channel_mults"],
        decoder_channels=settings["base_channels"],
        decoder_input_channels=settings["latent_dim"],
        audio_channels=settings["in_channels"],
    )
    model = _folded(model).to(device).eval()
    return _codec(job, device, lambda audio: model.encode(audio).latent_dist.mode(), lambda z: model.decode(z).sample)


def _build(module, settings):
    """Build `module` from the settings that it has. The others are at the torch system's values: `peer.check`."""
    known = inspect.signature(module).parameters
    return module(**{key: value for key, value in settings.items() if key in known})


def _folded(model):
    """Weight norm folded into the weights, as ours is for inference."""
    for module in model.modules():
        if hasattr(module, "weight_g"):
            torch.nn.utils.remove_weight_norm(module)
    return model


def _codec(job, device, encode, decode):
    settings = job["config"]["model"]
    audio = 0.3 * torch.randn(job["batch_size"], settings["in_channels"], job["length"])
    autocast = _autocast(device, settings["dtype"])
    if job["compile"]:
        encode, decode = torch.compile(encode), torch.compile(decode)
    with torch.no_grad(), autocast():
        latents = encode(audio.to(device)).float().cpu()

    def inferring(fn, x):
        def once():
            with torch.inference_mode(), autocast():
                fn(x.to(device)).float().cpu()

        return once

    return {"encode": inferring(encode, audio), "decode": inferring(decode, latents)}


def _losses(sections):
    """Return `(name, weight, loss)` of losses that the system has; others raise an error."""
    terms = []
    for name, section in sections.items():
        target = section["_target_"].rsplit(".", 1)[-1]
        weight = section["weight"]
        if section.get("perceptual_weighting") == "k":
            raise SystemExit(
                f"the torch reference has no K-weighting: set config.losses.{name}.perceptual_weighting=True"
            )
        if target == "sum_and_difference_stft":
            options = {
                "ffts": section["fft_sizes"], "hops": section["hop_sizes"], "wins": section["win_lengths"],
                "w_sc": section["w_sc"], "w_log": section["w_log_mag"], "w_lin": section["w_lin_mag"],
                "weighted": section["sample_rate"] if section["perceptual_weighting"] else None,
            }  # fmt: skip
            terms.append((name, weight, functools.partial(ref.sum_and_difference_stft, **options)))
        elif target == "multi_scale_mel":
            options = {
                "ffts": section["fft_sizes"], "n_mels": section["n_mels"], "sample_rate": section["sample_rate"],
                "convergence": section["convergence"],
            }  # fmt: skip
            terms.append((name, weight, functools.partial(ref.multi_scale_mel, **options)))
        elif target == "waveform_l1":
            terms.append((name, weight, torch.nn.functional.l1_loss))
        else:
            raise SystemExit(f"the torch reference has no loss like config.losses.{name} ({section['_target_']})")
    return terms


def _weighted(losses):
    return lambda x, y: sum(weight * loss(x, y) for _, weight, loss in losses)


def _noise(model, audio):
    frames = audio.shape[-1]
    for block in model.encoder.blocks:
        stride = block.downsample[1].stride[0]
        frames = (frames + 2 * (stride // 2) - 2 * stride) // stride + 1
    return torch.randn(audio.shape[0], model.latent_mean.shape[1], frames, device=audio.device)


def _autocast(device, dtype):
    if dtype == "float32":
        return contextlib.nullcontext
    return lambda: torch.autocast(device.type, torch.bfloat16)


def peak_memory():
    """Return this process's peak memory in bytes, as `performance.benchmark.measure` does; 0 if unknown."""
    with contextlib.suppress(OSError, StopIteration), open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM:"))
    return 0


def main():
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # output of libraries must not mix with the answers
    warnings.simplefilter("ignore")

    def answer(**values):
        print(json.dumps(values), file=answers, flush=True)

    job = json.loads(sys.argv[1])
    device = torch.device("cuda" if torch.cuda.is_available() and job["gpu"] else "cpu")
    torch.backends.cudnn.benchmark = True  # like XLA, it may search for the fastest algorithm
    work = {"step": step, "codec": codec, "oobleck": oobleck, "learning": learning}[job["kind"]](job, device)
    answer(torch=torch.__version__, device=str(device), threads=torch.get_num_threads())
    for line in sys.stdin:
        name = line.strip()
        if name == "reset":
            with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
                file.write("5")
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            answer()
            continue
        start = time.perf_counter()
        result = work[name]()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else peak_memory()
        answer(seconds=seconds, peak_bytes=peak, result=result)


if __name__ == "__main__":
    main()
