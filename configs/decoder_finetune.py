"""Fine-tunes a model's decoder against a new discriminator.

The encoder is frozen, so latents stay as they are. Give the model: `--config=configs/base.py:decoder_finetune
--config.init_from=MODEL`.
"""

from configs import base


def override(config):
    config.num_steps = 100_000
    config.init_weights_only = True
    config.model.encoder_frozen = True
    config.kl.weight = 0.0  # it has no gradient
    config.use_adversarial = True
    config.adversarial.warmup_steps = 0
    # Until the discriminator has learned something, the decoder follows the reconstruction losses.
    config.adversarial.ramp_steps = 1000
    config.discriminator_optimizer.warmup_steps = 1000
    config.optimizer.warmup_steps = 1000
    config.ema.decay = 0.999


def get_config(names=""):
    return base.get_config(names, override)
