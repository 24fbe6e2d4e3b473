"""A small training run of the PyTorch system: its step and its checkpoints. Audio is [B, C, T]."""

import functools
import math

import torch
import torch_reference as ref


class Run:
    """The model and its discriminator with their optimizers.

    Both gradients are computed at the parameters before the step. Latent statistics are unchanged: they cancel in the
    reconstruction, so their gradient is only rounding.

    Args:
      model, discriminator: modules of the reference; the discriminator may be None.
      reconstruction_loss: `(prediction, target) -> scalar`.
      num_steps: of the cosine schedules.
      rates: `(first, last)` learning rate of the model and of the discriminator.
      settings: further arguments of both optimizers.
      clip_norms: of both networks; 0 for no clipping.
      kl_warmup_steps: over which the weight rises from 0.
      warmup_steps: before the discriminator is used.
    """

    def __init__(
        self, model, discriminator, reconstruction_loss, num_steps, rates=((1.5e-4, 1e-5), (1e-4, 1e-6)),
        kl_weight=0.0, adversarial_weight=1.0, feature_matching_weight=10.0, settings=({}, {}), clip_norms=(1.0, 1.0),
        kl_warmup_steps=0, warmup_steps=0,
    ):  # fmt: skip
        self.model, self.discriminator, self.reconstruction_loss = model, discriminator, reconstruction_loss
        self.num_steps, self.rates, self.done = num_steps, rates, 0
        self.weights = (kl_weight, adversarial_weight, feature_matching_weight)
        for name in ("latent_mean", "latent_std"):
            getattr(model, name).requires_grad_(False)
        self.clip_norms, self.kl_warmup_steps, self.warmup_steps = clip_norms, kl_warmup_steps, warmup_steps
        usual = {"betas": (0.9, 0.999), "weight_decay": 1e-4, "eps": 1e-8}
        self.optimizers = [
            torch.optim.AdamW(module.parameters(), lr=first, **(usual | own))
            for module, (first, _), own in zip((model, discriminator), rates, settings, strict=True)
            if module is not None
        ]

    def step(self, audio, eps=None):
        """Train on one batch; return the losses of the networks that were updated, the model's first."""
        kl_weight, adversarial_weight, feature_matching_weight = self.weights
        if self.done < self.kl_warmup_steps:
            kl_weight *= self.done / self.kl_warmup_steps
        fake, _, mean, logvar = self.model(audio, eps)
        losses = [self.reconstruction_loss(fake, audio) + kl_weight * ref.kl_divergence(mean, logvar)]
        if self.discriminator is not None and self.done >= self.warmup_steps:
            real_logits, real_maps = self.discriminator(audio)
            fake_logits, fake_maps = self.discriminator(fake)
            losses[0] = losses[0] + adversarial_weight * ref.hinge_g(fake_logits)
            losses[0] = losses[0] + feature_matching_weight * ref.feature_matching(real_maps, fake_maps)
            losses.append(ref.hinge_d(real_logits, self.discriminator(fake.detach())[0]))
        gradients = []
        for loss, module in zip(losses, (self.model, self.discriminator), strict=False):
            parameters = [p for p in module.parameters() if p.requires_grad]
            gradients.append((parameters, torch.autograd.grad(loss, parameters, retain_graph=True)))
        updates = zip(self.optimizers, gradients, self.rates, self.clip_norms, strict=False)
        for optimizer, (parameters, grads), (first, last), clip_norm in updates:
            for parameter, grad in zip(parameters, grads, strict=True):
                parameter.grad = grad
            if clip_norm:
                torch.nn.utils.clip_grad_norm_(parameters, clip_norm)
            progress = min(self.done / self.num_steps, 1)
            optimizer.param_groups[0]["lr"] = last + (first - last) * (1 + math.cos(math.pi * progress)) / 2
            optimizer.step()
        self.done += 1
        return tuple(loss.item() for loss in losses)

    def load(self, checkpoint):
        """Resume from a Lightning checkpoint, read by torch."""
        for prefix, module in (("model.", self.model), ("discriminator.", self.discriminator)):
            state = checkpoint["state_dict"].items()
            module.load_state_dict({k.removeprefix(prefix): v for k, v in state if k.startswith(prefix)})
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            optimizer.load_state_dict(state)
        self.done = checkpoint["global_step"] // 2

    def lightning_checkpoint(self, model_config):
        """Return the contents of a Lightning checkpoint, with the same kinds of objects."""
        state = {"model." + k: v for k, v in self.model.state_dict().items()}
        state["loss_calculator.global_step"] = torch.tensor(self.done)
        state |= {"discriminator." + k: v for k, v in self.discriminator.state_dict().items()}
        return {
            "epoch": 1,
            "global_step": 2 * self.done,
            "pytorch-lightning_version": "2.6.6",
            "state_dict": state,
            "loops": {
                "fit_loop": {
                    "epoch_loop.batch_progress": {"total": {"ready": self.done, "completed": self.done}},
                    "state_dict": {},
                }
            },
            "callbacks": {},
            "optimizer_states": [optimizer.state_dict() for optimizer in self.optimizers],
            "lr_schedulers": [
                {"T_max": self.num_steps, "eta_min": last, "base_lrs": [first], "last_epoch": self.done}
                for first, last in self.rates
            ],
            "hparams_name": "kwargs",
            "hyper_parameters": {
                "optimizer": functools.partial(torch.optim.AdamW, lr=self.rates[0][0]),
                "scheduler": functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=self.num_steps),
                "sample_rate": 44100,
                "use_adversarial": True,
                "discriminator_update_every": 1,
                "generator_update_every": 1,
                "adversarial_warmup_steps": None,
                "adversarial_weight": self.weights[1],
                "feature_matching_weight": None,
            },
            "model_config": {k: list(v) if isinstance(v, tuple) else v for k, v in model_config.items()},
        }


def save_model_checkpoint(run, model_config):
    """Return the contents that the system's `save_model` writes, key by key."""
    return {
        "model_state_dict": run.model.state_dict(),
        "model_config": {k: list(v) if isinstance(v, tuple) else v for k, v in model_config.items()},
        "latent_statistics": {"latent_mean": run.model.latent_mean, "latent_std": run.model.latent_std},
        "encoder_frozen": False,
        "optimizer_state_dict": run.optimizers[0].state_dict(),
        "scheduler_state_dict": {"T_max": run.num_steps, "eta_min": 1e-5, "base_lrs": [1.5e-4], "last_epoch": run.done},
        "epoch": 3,
        "global_step": run.done,
        "metadata": {"val_loss": 0.125, "notes": "golden"},
    }
