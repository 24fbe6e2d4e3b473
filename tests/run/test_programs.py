"""The compiled programs of a run."""

import threading

from audiovae_jax.run import train
from audiovae_jax.training import compilation


def test_the_first_step_is_compiled_beside_the_validation(micro_config, tmp_path, monkeypatch):
    micro_config.num_steps, micro_config.use_adversarial = 1, False
    both, compiled, seen = threading.Barrier(2, timeout=120), compilation.compiled, []

    def meeting(function, *args, **options):
        seen.append(threading.current_thread())
        if len(seen) <= 2:
            both.wait()  # breaks if the second program is begun only after the first is compiled
        return compiled(function, *args, **options)

    monkeypatch.setattr(compilation, "compiled", meeting)
    state = train.train(micro_config, tmp_path)
    assert int(state.step) == 1
    assert len(seen) == len(set(seen)) == 2  # the validation after the step is the same program
