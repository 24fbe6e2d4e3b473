"""Names of the model's parameters in each project's checkpoints.

All of them store the same layers. Tensors have torch's layout, see `layout`.
"""

import dataclasses
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from audiovae_jax.errors import CheckpointError
from audiovae_jax.torch_io import layout

PARTS = ("encoder.", "decoder.", "quantizer.")  # of the models of other projects
_UNITS = 3  # residual units per block in every model of the other projects
_WEIGHT = r"\.(weight|weight_v|parametrizations\.weight\.original1)"
# Parts of a prefix, of models that are copies of the one that is wanted.
_AVERAGED, _COPIED = "ema", "online_model"


@dataclasses.dataclass(frozen=True)
class Dialect:
    """A project's names and the arguments of `AudioVAE` that all its models share.

    Attributes:
      name: the project.
      module: maps the path of a module of ours and the number of blocks to its name.
      kind: arguments of `AudioVAE`. What they lack, the shapes or a config determine.
      left_out: reasons to leave tensors out, by a pattern of their names.
      marks: patterns of names that only this dialect has, for a dialect that extends another.
      flat_activations: whether parameters of activations are `[C]`, not `[1, C, 1]`.
      projections: whether there are projections to and from the latent.
    """

    name: str
    module: Callable[[tuple[str, ...], int], str]
    kind: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    left_out: Mapping[str, str] = dataclasses.field(default_factory=dict)
    marks: str | None = None
    flat_activations: bool = False
    projections: bool = False

    def key(self, path: tuple[str, ...], blocks: int) -> str:
        """The state-dict key of a parameter's path in a model of `blocks` blocks."""
        return f"{self.module(path[:-1], blocks)}.{layout.LEAVES[path[-1]]}"

    def reason_to_leave_out(self, key: str) -> str:
        """Why the tensor of an unused key is left out; empty if it should not exist."""
        return next((reason for pattern, reason in self.left_out.items() if re.match(pattern, key)), "")

    def prefixes(self, keys: Collection[str]) -> list[str]:
        """The prefixes under which a model lies among `keys`, in their order."""
        ends = [self.module((part, "input_conv"), 1) for part in ("encoder", "decoder")]
        found = [
            {match[1]: None for key in keys if (match := re.fullmatch(rf"((?:.*\.)?){re.escape(end)}{_WEIGHT}", key))}
            for end in ends
        ]
        return [
            prefix
            for prefix in found[0]
            if prefix in found[1]
            and (self.marks is None or any(re.match(re.escape(prefix) + self.marks, key) for key in keys))
        ]


def _native(modules, blocks):
    del blocks
    return layout.torch_key((*modules, "bias")).removesuffix(".bias")


_DIFFUSERS_NAMES = {
    "input_conv": "conv1", "final_snake": "snake1", "final_conv": "conv2", "snake": "snake1", "downsample": "conv1",
    "upsample": "conv_t1", "snake1": "snake1", "conv1": "conv1", "snake2": "snake2", "conv2": "conv2",
}  # fmt: skip


def _diffusers(modules, blocks):
    del blocks
    names = []
    for module in modules:
        stem, _, number = module.rpartition("_")
        if stem == "blocks":
            names.append(f"block.{number}")
        elif stem == "res_units":
            names.append(f"res_unit{int(number) + 1}")
        else:
            names.append(_DIFFUSERS_NAMES.get(module, module))
    return ".".join(names)


def _number(side, module, blocks, units):
    """The number of a module in the `nn.Sequential` around it."""
    stem, _, number = module.rpartition("_")
    if stem == "blocks":
        return int(number) + 1
    if stem == "res_units":
        return units[side][int(number)]
    return {
        "input_conv": 0, "final_snake": blocks + 1, "final_conv": blocks + 2,
        "snake": 0 if side == "decoder" else _UNITS, "downsample": _UNITS + 1, "upsample": 1,
        "snake1": 0, "conv1": 1, "snake2": 2, "conv2": 3,
    }[module]  # fmt: skip


_UNIT_NUMBERS = {"encoder": range(_UNITS), "decoder": range(2, 2 + _UNITS)}


def _stable_audio_tools(modules, blocks):
    side, *inner = modules
    return ".".join([side, *(f"layers.{_number(side, module, blocks, _UNIT_NUMBERS)}" for module in inner)])


def _dac(modules, blocks, units=None):
    side, *inner = modules
    words = ["block" if side == "encoder" else "model", "block", "block"]
    numbers = [_number(side, module, blocks, units or _UNIT_NUMBERS) for module in inner]
    return ".".join([side, *(f"{word}.{number}" for word, number in zip(words, numbers, strict=False))])


_DACVAE_NAMES = {
    ("encoder", "projection"): "quantizer.in_proj",
    ("decoder", "projection"): "quantizer.out_proj",
    ("decoder", "final_snake"): "decoder.wm_model.encoder_block.pre.0",
    ("decoder", "final_conv"): "decoder.wm_model.encoder_block.pre.1",
}


def _dacvae(modules, blocks):
    # Layers of the watermark lie between the decoder's residual units.
    units = {"encoder": range(_UNITS), "decoder": (4, 5, 8)}
    return _DACVAE_NAMES.get(modules) or _dac(modules, blocks, units)


NATIVE = Dialect("PyTorch system", _native)
DIFFUSERS = Dialect("diffusers", _diffusers, {"posterior": "softplus", "padding": "ceil", "final_tanh": False})
STABLE_AUDIO_TOOLS = Dialect("stable-audio-tools", _stable_audio_tools, {"padding": "ceil"}, flat_activations=True)
DAC = Dialect(
    "DAC",
    _dac,
    {"posterior": "none", "padding": "ceil", "final_tanh": True},
    {r"quantizer\.": "of the quantiser; the latent is the encoder's output"},
)
DACVAE = Dialect(
    "DACVAE",
    _dacvae,
    {"posterior": "softplus", "final_tanh": True},
    {
        r"decoder\.(wm_model|model\.\d+\.block\.(2|3|6|7|9|10|11))\.": "of the watermark, which is not added: other "
        "networks mix a random message into the audio, and they are no part of the autoencoder"
    },
    marks=r"quantizer\.in_proj\.",
    projections=True,
)
FOREIGN = (DIFFUSERS, STABLE_AUDIO_TOOLS, DACVAE, DAC)


def find(keys: Collection[str], notes: list[str]) -> tuple[Dialect, str] | None:
    """Find the model of another project among the keys of a state dict.

    Of a training's model and its average, the average is taken.

    Args:
      keys: without the prefixes of wrappers.
      notes: gets a line if there is more than one copy.

    Returns:
      Its dialect, and the prefix of its keys; None if there is none.

    Raises:
      CheckpointError: there are several models.
    """
    for dialect in FOREIGN:
        prefixes = dialect.prefixes(keys)
        if not prefixes:
            continue
        chosen = [prefix for prefix in prefixes if _AVERAGED in prefix and _COPIED not in prefix]
        chosen = chosen or [prefix for prefix in prefixes if _COPIED not in prefix] or prefixes
        if len(chosen) > 1:
            raise CheckpointError(
                f"it contains {len(chosen)} models of {dialect.name}, with the prefixes {', '.join(chosen)}; "
                "give a file with one of them"
            )
        if len(prefixes) > 1:
            others = ", ".join(prefix for prefix in prefixes if prefix != chosen[0])
            averaged = "the average (EMA) of its weights" if _AVERAGED in chosen[0] else "the model"
            notes.append(f"{averaged} under {chosen[0]} is used, not the weights under {others}")
        return dialect, chosen[0]
    return None
