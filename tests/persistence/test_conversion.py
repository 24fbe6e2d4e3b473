"""The two commands that convert between torch's files and saved models."""

import functools
import json
import shutil
import tracemalloc
import warnings
from pathlib import Path

import command_line
import golden_foreign
import jax
import numpy as np
import pytest
from conftest import GOLDEN, KINDS, applied, random_variables

from audiovae_jax import AudioVAE, Codec
from audiovae_jax.config import build
from audiovae_jax.persistence import conversion
from audiovae_jax.persistence.saved_model import load_model, open_model, save_model
from audiovae_jax.torch_io import export, export_audio_vae, import_audio_vae, read_checkpoint, training
from audiovae_jax.torch_io.files.writer import write_checkpoint

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_import_lists_what_became_of_each_tensor(tmp_path):
    made = conversion.import_torch(str(GOLDEN / "lightning.ckpt"), str(tmp_path / "m"))
    state = read_checkpoint(GOLDEN / "lightning.ckpt")["state_dict"]
    lines = {line.key: line for line in made.lines}
    for key in state:
        name = key.removeprefix("model.")
        assert name in lines, name
        kept = "window" not in name and not name.endswith("fb") and not name.startswith("loss_calculator")
        assert (lines[name].became is None) != kept
    assert lines["loss_calculator.global_step"].note == "of another part, not of the model"
    assert lines["discriminator.msstft.discriminators.0.window"].note == "a constant, computed here"
    assert (made.model.base_channels, made.model.channel_mults) == (2, (1, 2))
    assert "global_step=6 counts the updates of both optimizers; 3 batches were seen" in made.notes
    assert made.has_optimizer
    assert made.compared > 0
    assert made.largest_difference == 0
    _, variables = load_model(tmp_path / "m")
    jax.tree.map(np.testing.assert_array_equal, variables, import_audio_vae(GOLDEN / "lightning.ckpt")[1])


def test_the_import_frees_the_weights_before_it_compares_them(tmp_path, monkeypatch):
    model = AudioVAE(base_channels=34, channel_mults=(4,), strides=(2,), latent_dim=17, **KINDS["oobleck"])
    written = export.export_for("diffusers", model, random_variables(model), tmp_path / "theirs", 44100)
    size = sum(tensor.nbytes for tensor in written.values())
    conversion.import_torch(str(tmp_path / "theirs"), str(tmp_path / "first"))  # imports and caches what it needs
    held = []

    def opened(*args, **options):
        held.append(tracemalloc.get_traced_memory()[0])
        return open_model(*args, **options)

    monkeypatch.setattr(conversion.saved_model, "open_model", opened)
    tracemalloc.start()
    try:
        made = conversion.import_torch(str(tmp_path / "theirs"), str(tmp_path / "second"))
    finally:
        tracemalloc.stop()
    assert (made.compared, made.largest_difference) == (len(written), 0)
    assert held[0] < 0.8 * size


@pytest.mark.slow
def test_the_commands_there_and_back(tmp_path):
    run = functools.partial(command_line.run, cwd=tmp_path)
    there = run("import_torch", GOLDEN / "bare_legacy.pt", "m", "--dilations=1,2")
    assert there.returncode == 0, there.stderr
    assert "inferred from its tensors" in there.stdout
    assert "dilations=(1, 2) (given)" in there.stdout
    back = run("export_torch", "m", "back.safetensors")
    assert back.returncode == 0, back.stderr
    original = read_checkpoint(GOLDEN / "bare_legacy.pt")
    returned = read_checkpoint(tmp_path / "back.safetensors")
    for key, tensor in original.items():
        np.testing.assert_array_equal(returned[key], tensor)
    wrong = run("import_torch", GOLDEN / "model.npz", "n")
    assert wrong.returncode == 1
    assert wrong.stderr.strip().splitlines()[-1].startswith(f"error: {GOLDEN / 'model.npz'} cannot be read")
    assert "Traceback" not in wrong.stderr
    few = run("export_torch", "m")
    assert few.stderr.strip().endswith("1 argument given; usage: export_torch MODEL OUT [flags] (--help lists them)")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["back.safetensors", "m"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
def test_the_sample_rate_survives_and_omitted_parts_are_reported(tmp_path, trained_run, name):
    workdir, _, _ = trained_run
    made = conversion.export_torch(str(workdir), str(tmp_path / name), step=2)
    assert ("the optimizer's state, which needs a .pt file" in made.left_out) == (name == "x.safetensors")
    assert made.optimizer_step == (2 if name == "x.pt" else None)
    assert "the discriminator and its optimizer's state" in made.left_out
    assert open_model(tmp_path / name).sample_rate == 44100
    save_model(*load_model(workdir), tmp_path / "m", sample_rate=48000)
    conversion.export_torch(str(tmp_path / "m"), str(tmp_path / name))
    conversion.import_torch(str(tmp_path / name), str(tmp_path / "n"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Codec.load(tmp_path / "n").sample_rate == 48000


def test_a_model_is_exported_even_if_its_training_state_is_damaged(tmp_path, trained_run):
    workdir, _, state = trained_run
    model, variables = load_model(workdir)
    save_model(model, variables, tmp_path / "m", sample_rate=48000, optimizer_state=state.opt_state)
    shutil.rmtree(tmp_path / "m" / "optimizer")
    made = conversion.export_torch(str(tmp_path / "m"), str(tmp_path / "x.safetensors"))
    assert made.left_out[0].startswith("the training state, which cannot be read (")
    jax.tree.map(np.testing.assert_array_equal, load_model(tmp_path / "x.safetensors")[1], variables)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
def test_what_a_format_cannot_hold_is_listed(tmp_path, trained_run, name):
    workdir, config, state = trained_run
    model, variables = load_model(workdir)
    whole = {"optimizer_state": state.opt_state, "discriminator_params": state.discriminator_params}
    whole["discriminator"] = build.build_discriminator(config)
    save_model(model.clone(dtype="bfloat16"), variables, tmp_path / "m", **whole)
    assert conversion.export_torch(str(tmp_path / "m"), str(tmp_path / name)).left_out == (
        "the optimizer's state, which is only exported from a workdir",
        "the discriminator",
        "the model's dtype bfloat16 (give --dtype=bfloat16 when loading)",
        "the sample rate, which is unknown (give --sample_rate when loading)",
    )
    save_model(model, variables, tmp_path / "m", sample_rate=48000)
    assert conversion.export_torch(str(tmp_path / "m"), str(tmp_path / name)).left_out == ()
    export_audio_vae(model, variables, tmp_path / name, sample_rate=48000, metadata={"notes": "best"})
    found = open_model(tmp_path / name)
    assert (found.sample_rate, found.metadata) == (48000, {"notes": "best", "sample_rate": 48000})
    assert training.read_training(tmp_path / name).overrides["data.sample_rate"] == 48000


@pytest.mark.slow
def test_our_run_resumes_in_torch(tmp_path, trained_run):
    """torch.optim loads the weights, AdamW's state and the schedule of a workdir."""
    workdir, _, state = trained_run
    conversion.export_torch(str(workdir), str(tmp_path / "x.pt"), step=2)
    written = read_checkpoint(tmp_path / "x.pt")
    assert written["global_step"] == 2
    assert {s["step"].item() for s in written["optimizer_state_dict"]["state"].values()} == {2.0}
    torch = pytest.importorskip("torch")
    import torch_reference

    checkpoint = torch.load(tmp_path / "x.pt")
    theirs = torch_reference.AudioVAE(**checkpoint["model_config"])
    theirs.load_state_dict(checkpoint["model_state_dict"], strict=True)
    optimizer = torch.optim.AdamW(theirs.parameters())
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1)
    optimizer.load_state_dict(checkpoint["optimizer_state_dict"])
    scheduler.load_state_dict(checkpoint["scheduler_state_dict"])
    names = [name for name, _ in theirs.named_parameters()]
    moment = optimizer.state[theirs.decoder.final_conv[1].bias]["exp_avg"]
    ours = state.opt_state[1].mu["decoder"]["final_conv"]["bias"]
    np.testing.assert_array_equal(moment.numpy(), np.asarray(ours))
    assert len(names) == len(optimizer.param_groups[0]["params"])
    audio = 0.3 * np.random.default_rng(0).standard_normal((1, 2, 400)).astype(np.float32)
    with torch.no_grad():
        reconstruction, *_ = theirs(torch.tensor(audio))
    model, variables = load_model(workdir, step=2)
    mine = applied(model, variables, np.moveaxis(audio, 1, -1), deterministic=True).reconstruction
    np.testing.assert_allclose(np.moveaxis(np.asarray(mine), -1, 1), reconstruction.numpy(), atol=1e-5)
    for parameter in theirs.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    scheduler.step()


def test_an_import_from_the_hub_pins_the_commit(hub, tmp_path):
    write_checkpoint(tmp_path / "dac.pth", {"state_dict": golden_foreign.load("dac")[0]})
    commit = hub.commit("them/dac", {"README.md": b"", "old/dac.pth": (tmp_path / "dac.pth").read_bytes()})
    made = conversion.import_torch("hf://them/dac/old/dac.pth", str(tmp_path / "m"))
    assert (made.compared > 0, made.largest_difference) == (True, 0)
    metadata = open_model(tmp_path / "m").metadata
    assert metadata["imported_from"] == f"hf://them/dac/old/dac.pth@{commit}"
    hub.commit("them/dac", {"old/dac.pth": b"another"})
    conversion.import_torch(metadata["imported_from"], str(tmp_path / "n"))
    assert open_model(tmp_path / "n").metadata == metadata
    assert hub.downloads == ["old/dac.pth"]


@pytest.mark.slow
def test_an_import_from_a_bucket_reads_the_config_beside_the_file(bucket, tmp_path):
    """As on disk."""
    (tmp_path / "sat").mkdir()
    write_checkpoint(tmp_path / "sat" / "model.ckpt", {"state_dict": golden_foreign.load("elu")[0]})
    (tmp_path / "sat" / "model_config.json").write_text(json.dumps(golden_foreign.config("elu")))
    (tmp_path / "sat" / "notes.txt").write_text("not read")
    bucket.upload(tmp_path)
    local = open_model(tmp_path / "sat" / "model.ckpt")
    assert (local.notes, local.model.final_tanh, local.sample_rate) == ([], True, golden_foreign.RATE)
    for url in (f"{bucket}/sat/model.ckpt", f"{bucket}/sat"):
        there = open_model(url)
        assert (there.model, there.sample_rate, there.notes) == (local.model, local.sample_rate, [])
        jax.tree.map(np.testing.assert_array_equal, there.variables, local.variables)
    conversion.import_torch(f"{bucket}/sat/model.ckpt", str(tmp_path / "m"))
    found = open_model(tmp_path / "m")
    assert (found.model, found.metadata["imported_from"]) == (local.model, "model.ckpt")
