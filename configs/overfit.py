"""One fixed batch for ever: whether the model can learn at all, before hours are spent."""

from configs import base


def override(config):
    config.num_steps = 1000
    config.batch_size = 1
    config.use_adversarial = False
    config.data.fixed_batch = True


def get_config(names=""):
    return base.get_config(f"overfit,{names}")
