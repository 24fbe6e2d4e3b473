"""`push_to_hub`: writes a model with a model card to the Hugging Face hub."""

import json
import numbers
import tempfile
from pathlib import Path

from audiovae_jax.errors import CheckpointError
from audiovae_jax.models.layers import count_parameters
from audiovae_jax.persistence import saved_model
from audiovae_jax.persistence.locate import ARRAYS, DESCRIPTION, TREES
from audiovae_jax.persistence.saved_model import LoadedModel
from audiovae_jax.storage import hub

_CARD = "README.md"
_GENERATED = "<!-- Written by push_to_hub. Remove this line to keep your changes when you push again. -->"


def push_to_hub(
    source: str | Path, url: str, *, step: int | None = None, license: str | None = None, private: bool = False
) -> hub.Pushed:
    """Write a model to a repository of the hub, as a saved model with a model card.

    `load_model(url)` loads it. A saved model at the URL is replaced in one commit.

    Args:
      source, step: see `load_model`. A saved model's discriminator and optimizer are written too.
      url: `hf://owner/name[/folder][@branch]`. The repository is created if it does not exist.
      license: identifier for the card's header, such as "apache-2.0".
      private: make a new repository private.

    Returns:
      The address of the repository and the hash of the commit.

    Raises:
      CheckpointError: the model cannot be read, or the repository cannot be written.
    """
    if not hub.is_hub(url):
        raise CheckpointError(" is not a URL of the hub; give hf://owner/name", path=url)
    try:
        card = hub.read_file(url, _CARD)
        loaded = saved_model.open_model(source, step=step, training=True)
        with tempfile.TemporaryDirectory(prefix="audiovae_jax_") as temporary:
            folder = Path(temporary) / "model"
            saved_model.save_loaded(loaded, folder)
            if card is None or _GENERATED in card:
                (folder / _CARD).write_text(model_card(loaded, url, license=license))
            return hub.push(folder, url, replaces=_is_of_saved_model, message="Push an AudioVAE", private=private)
    except OSError as error:
        raise CheckpointError(f": {error.strerror or error}", path=url) from error


def model_card(loaded: LoadedModel, url: str, *, license: str | None = None) -> str:
    """Return the text of a model card, in Markdown with a YAML header.

    Args:
      loaded: the model. Numbers in its metadata are listed as metrics.
      url: the model's URL, for the example.
      license: see `push_to_hub`.
    """
    model, rate = loaded.model, loaded.sample_rate
    rows = {
        "Sample rate": None if rate is None else f"{rate:,} Hz",
        "Channels": model.in_channels,
        "Hop": f"{model.hop_length:,} samples",
        "Latent": f"{model.latent_dim} values"
        + ("" if rate is None else f", {rate / model.hop_length:.4g} per second"),
        "Posterior": model.posterior,
        "Parameters": f"{count_parameters(loaded.variables['params']):,}",
        "Step": None if loaded.global_step is None else f"{loaded.global_step:,}",
        "Imported from": _code(loaded.metadata.get("imported_from")),
    }
    metrics = {
        _code(name): f"{value:.6g}"
        for name, value in loaded.metadata.items()
        if isinstance(value, numbers.Real) and not isinstance(value, bool)
    }
    header = ["library_name: audiovae_jax", "pipeline_tag: audio-to-audio", "tags:", "- audio", "- vae", "- jax"]
    header += [] if license is None else [f"license: {json.dumps(license)}"]
    known = {name: value for name, value in rows.items() if value is not None}
    lines = ["---", *header, "---", _GENERATED, "", f"# {hub.without_revision(url).rpartition('/')[2]}", ""]
    lines += ["An audio VAE of audiovae_jax: it encodes audio to continuous latents, and decodes them.", ""]
    lines += _table("Property", "Value", known)
    lines += ["## Metrics", "", *_table("Metric", "Value", metrics)] if metrics else []
    lines += [
        "## Use",
        "",
        "```python",
        "from audiovae_jax import Codec  # pip install 'audiovae-jax[hub]'",
        f'codec = Codec.load("{url}")',
        'audio = codec.decode(codec.encode("song.wav"))',
        "```",
        "",
    ]
    return "\n".join(lines)


def _is_of_saved_model(name):
    return name == DESCRIPTION or name.startswith((*(f"{tree}/" for tree in TREES), ARRAYS))


def _table(name, value, rows):
    return [f"| {name} | {value} |", "|---|---|", *(f"| {key} | {cell} |" for key, cell in rows.items()), ""]


def _code(text):
    return None if text is None else f"`{' '.join(str(text).replace('`', '').replace('|', '/').split())}`"
