"""The page's operations: the numbers and files of the commands, and messages for errors."""

import dataclasses
import hashlib
import json
import shutil

import numpy as np
import pytest
import safetensors.numpy
import soundfile
from conftest import random_variables

from audiovae_jax import AudioVAE, Codec, Latents, save_model
from audiovae_jax.data.audio import stream
from audiovae_jax.errors import CheckpointError, DataError
from audiovae_jax.evaluation import metrics
from audiovae_jax.evaluation.listening import latent_edits, listening
from audiovae_jax.evaluation.listening.models import Models
from audiovae_jax.evaluation.listening.service import Service
from audiovae_jax.evaluation.listening.sessions import Gone, Sessions

RATE = 8000


def nothing(share, text):
    pass


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("one", "two")):
        model = AudioVAE(base_channels=2, channel_mults=(1, 2), strides=(2, 4), latent_dim=3, dilations=(1,))
        save_model(model, random_variables(model, seed), folder / name, sample_rate=RATE)
    return folder


@pytest.fixture
def service(root, tmp_path):
    return Service(Models(str(root), Codec.load), Sessions(tmp_path / "page"))


@pytest.fixture
def upload(service, tmp_path):
    """Returns a function that writes a file where gradio would: in a folder named by its content."""

    def put(name, content):
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            soundfile.write(path, content, RATE, subtype="FLOAT" if name.endswith(".wav") else None)
        folder = service.sessions.folder / hashlib.sha256(path.read_bytes()).hexdigest()
        folder.mkdir(parents=True, exist_ok=True)
        return shutil.copy(path, folder)

    return put


def noise(seed, length=3001, channels=2):
    return 0.3 * np.random.default_rng(seed).standard_normal((length, channels)).astype(np.float32)


def samples(path):
    return soundfile.read(path, dtype="float32")[0]


@pytest.mark.slow
def test_a_reconstruction_is_that_of_the_commands(service, root, upload, tmp_path):
    song, said = upload("song.wav", noise(0)), []
    made = service.reconstruct("a", "one", song, False, lambda share, text: said.append((share, text)))
    codec = Codec.load(root / "one")
    codec.encode_file(song, tmp_path / "expected.safetensors")
    codec.reconstruct_file(song, tmp_path / "expected.wav")
    assert made.latents.read_bytes() == (tmp_path / "expected.safetensors").read_bytes()
    np.testing.assert_array_equal(samples(made.reconstruction), samples(tmp_path / "expected.wav"))
    original, reconstruction, difference = (samples(one.path) for one in made.recordings)
    np.testing.assert_array_equal(difference, original - reconstruction)
    assert [one.title for one in made.recordings] == ["original", "reconstruction", "difference"]
    assert all(one.picture.startswith("data:image/png;base64,") for one in made.recordings)
    error = np.square(original - reconstruction, dtype=np.float64).mean()
    assert made.metrics["mse"] == pytest.approx(error, rel=1e-6)
    assert made.metrics["kl_nats_per_frame"] > 0
    assert made.metrics.keys() <= metrics.COLUMNS.keys()
    assert [share for share, _ in said] == sorted(share for share, _ in said)
    assert said[-1][0] == pytest.approx(1.0)


def test_latents_are_encoded_once_and_decoded_as_the_command_does(service, root, upload, tmp_path, monkeypatch):
    song = upload("song.wav", noise(1))
    kept = service.encode("a", "one", song, False, nothing)
    monkeypatch.setattr(Codec, "encode_file", None)  # it would fail
    assert service.encode("a", "one", song, False, nothing) == kept
    again = upload("song.safetensors", kept.read_bytes())
    audio = service.decode("a", "one", again, nothing)
    Codec.load(root / "one").decode_file(kept, tmp_path / "expected.wav")
    np.testing.assert_array_equal(samples(audio), samples(tmp_path / "expected.wav"))
    with pytest.raises(DataError, match="is in the server's log"):  # another visitor has none yet
        service.encode("b", "one", song, False, nothing)


def test_turning_adds_deviations_to_a_channel_and_to_no_other(service, upload):
    song = upload("song.wav", noise(2))
    plain = Latents.load(service.encode("a", "one", song, False, nothing)).z
    audio, kept = service.turn_channels("a", "one", song, {"1": 2.0}, False, nothing)
    turned = Latents.load(kept).z
    np.testing.assert_allclose(turned[..., 1] - plain[..., 1], 2 * plain[..., 1].std(dtype=np.float64), rtol=1e-3)
    np.testing.assert_array_equal(turned[..., [0, 2]], plain[..., [0, 2]])
    assert soundfile.info(audio).frames == 3001
    spread = dict(service.channels("a", "one", song, False, nothing))
    assert spread == pytest.approx({i: plain[..., i].std(dtype=np.float64) for i in range(3)})
    assert list(spread.values()) == sorted(spread.values(), reverse=True)
    assert service.sessions.session("a").memory["turned"].path == audio


def test_both_ends_of_an_interpolation_are_the_files_themselves(service, upload):
    first, second = upload("first.wav", noise(3)), upload("second.flac", noise(4, 2001, 1))
    ends = [Latents.load(service.encode("a", "one", file, False, nothing)).z for file in (first, second)]
    for position, end in enumerate(ends):
        audio, kept = service.interpolate("a", "one", first, second, position, False, nothing)
        z = Latents.load(kept).z
        np.testing.assert_array_equal(z, end[:, : z.shape[1]])
        assert (soundfile.info(audio).frames, soundfile.info(audio).channels) == (2001, 2)
    _, kept = service.interpolate("a", "one", first, second, 0.25, False, nothing)
    frames = z.shape[1]
    expected = 0.75 * ends[0][:, :frames] + 0.25 * ends[1][:, :frames]
    np.testing.assert_allclose(Latents.load(kept).z, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("text.wav", b"this is no sound, but text", "^text.wav: not audio that can be read"),
        ("empty.wav", b"", "^empty.wav: the file is empty"),
        ("nan.wav", np.full((3000, 2), np.nan, np.float32), "^nan.wav: .*contains NaN or infinite samples"),
        ("late.wav", np.r_[noise(5, 300_000), [[np.inf, 0]], noise(6, 300_000)], "^late.wav: .*NaN or infinite"),
        ("three.wav", noise(7, 100, 3), "three.wav.* has 3 channels, but the model needs 2"),
        ("bad.safetensors", b"nonsense", "not audio|cannot be read"),
    ],
)
def test_a_bad_file_gives_a_message(service, upload, name, content, why):
    file = upload(name, content)
    for ask in (
        lambda: service.reconstruct("a", "one", file, False, nothing),
        lambda: service.encode("a", "one", file, False, nothing),
        lambda: service.turn_channels("a", "one", file, {}, False, nothing),
        lambda: service.interpolate("a", "one", file, file, 0.5, False, nothing),
    ):
        with pytest.raises(DataError, match=why) as caught:
            ask()
        assert str(service.sessions.folder) not in str(caught.value)


def test_requests_that_make_no_sense_give_a_message(service, upload):
    song = upload("song.wav", noise(8))
    for turns, why in [
        ({"3": 1.0}, "no latent channel '3'; channels are 0 to 2"),
        ({"-1": 1.0}, "no latent channel"),
        ({"x": 1.0}, "no latent channel"),
        ({"0": "1"}, "must be a number from -4 to 4"),
        ({"0": float("nan")}, "must be a number"),
        ({"0": 5}, "is 5, but must be from -4 to 4"),
        ({"0": 10**400}, "must be a number"),
        ({"00": 1.0}, "no latent channel '00'"),
        ({" 0": 1.0}, "no latent channel"),
        ({"0": 1.0, "1": 1.0, "2": 1.0, "3": 1.0}, "there are 4 turns for 3 latent channels"),
        ([1.0], "turns must map channels to numbers"),
    ]:
        with pytest.raises(DataError, match=why):
            service.turn_channels("a", "one", song, turns, False, nothing)
    for position in (-0.1, 1.1, float("nan"), None, "half", True):
        with pytest.raises(DataError, match="the position"):
            service.interpolate("a", "one", song, song, position, False, nothing)
    with pytest.raises(DataError, match="song.wav is not a file of latents"):
        service.decode("a", "one", song, nothing)
    latents = upload("l.safetensors", service.encode("a", "one", song, False, nothing).read_bytes())
    with pytest.raises(CheckpointError, match="^l.safetensors were encoded by another model"):
        service.decode("a", "two", latents, nothing)
    with pytest.raises(CheckpointError, match="^l.safetensors were encoded by another model"):
        service.turn_channels("a", "two", latents, {}, False, nothing)


def test_an_edit_is_heard_beside_what_was_not_edited(service, root, upload, tmp_path, monkeypatch):
    song = upload("song.wav", noise(40))
    untouched = service.untouched("a", "one", song, False, nothing)
    Codec.load(root / "one").reconstruct_file(song, tmp_path / "expected.wav")
    np.testing.assert_array_equal(samples(untouched.path), samples(tmp_path / "expected.wav"))
    audio, _ = service.turn_channels("a", "one", song, {"0": 2.0}, False, nothing)
    assert np.abs(samples(audio) - samples(untouched.path)).max() > 1e-6
    audio, _ = service.turn_channels("a", "one", song, {}, False, nothing)  # all reset
    np.testing.assert_array_equal(samples(audio), samples(untouched.path))
    monkeypatch.setattr(Codec, "decode_file", None)  # it would fail
    assert service.untouched("a", "one", song, False, nothing) is untouched


def test_sources_of_an_interpolation_are_heard_as_they_are(service, root, upload, tmp_path):
    song = upload("song.aiff", noise(41))
    source = service.source("a", "one", song, "first", nothing)
    assert (source.title, source.path.suffix) == ("first", ".wav")
    np.testing.assert_array_equal(samples(source.path), samples(song))
    latents = upload("song.safetensors", service.encode("a", "one", song, False, nothing).read_bytes())
    decoded = service.source("a", "one", latents, "second", nothing)
    Codec.load(root / "one").decode_file(latents, tmp_path / "expected.wav")
    assert decoded.title == "second"
    np.testing.assert_array_equal(samples(decoded.path), samples(tmp_path / "expected.wav"))


def test_example_clips_can_be_used_as_if_uploaded(service):
    clips = [service.example(number) for number in (0, 1)]
    assert service.example(0) == clips[0]
    assert all(soundfile.info(clip).duration == 10 for clip in clips)
    assert np.abs(samples(clips[0]) - samples(clips[1])).max() > 0.1
    assert service.channels("a", "one", str(clips[0]), False, nothing)


def test_errors_name_the_page_s_controls_and_no_flags(service, upload):
    song, six = upload("song.wav", noise(42)), upload("six.wav", noise(43, 100, 6))
    latents = upload("l.safetensors", service.encode("a", "one", song, False, nothing).read_bytes())
    for ask, control in (
        (lambda: service.reconstruct("a", "one", None, False, nothing), '"Audio"'),
        (lambda: service.interpolate("a", "one", song, None, 0.5, False, nothing), '"Second file"'),
        (lambda: service.interpolate("a", "one", None, song, 0.5, False, nothing), '"Audio"'),
        (lambda: service.reconstruct("a", "three", song, False, nothing), '"Model"'),
        (lambda: service.untouched("a", "two", latents, False, nothing), '"Model"'),
        (lambda: service.reconstruct("a", "one", latents, False, nothing), '"Edit latents"'),
        (lambda: service.reconstruct("a", "one", six, False, nothing), '"Mix channels to fit the model"'),
        (lambda: service.turn_channels("a", "one", six, {}, False, nothing), '"Mix channels to fit the model"'),
    ):
        with pytest.raises((DataError, CheckpointError), match=control) as caught:
            ask()
        assert "--" not in str(caught.value)
        assert "=True" not in str(caught.value)


def test_long_names_of_any_letters_have_room(service, upload):
    files = [upload(f"{letter * (180 // len(letter.encode()))}.wav", noise(30)) for letter in ("\u6b4c", "x")]
    for first, second in (files, files[::-1]):
        audio, kept = service.interpolate("a", "one", first, second, 0.5, False, nothing)
        assert audio.name.encode().decode().endswith("-0.50.wav")
        assert all(len(path.name.encode()) < 200 for path in (audio, kept))
    assert service.turn_channels("a", "one", files[0], {}, False, nothing)[0].name == "\u6b4c" * 26 + "-turned.wav"


def test_a_librarys_failure_is_one_line_of_the_log(service, upload, monkeypatch, caplog):
    def fails(*given, **options):
        raise RuntimeError(f"secret of {service.sessions.folder}\nand more")

    monkeypatch.setattr(Codec, "encode_file", fails)
    with pytest.raises(DataError) as caught:
        service.encode("a", "one", upload("song.wav", noise(31)), False, nothing)
    assert "secret" not in str(caught.value)
    (said,) = caplog.messages
    assert "\n" not in said
    assert "RuntimeError" in said
    assert "secret" in said
    assert "test_service.py" in said


def test_a_file_that_would_take_too_long_is_refused(service, upload, monkeypatch):
    monkeypatch.setattr(listening, "_MAX_VALUES", 6000)
    song = upload("song.wav", noise(9))
    with pytest.raises(DataError, match="song.wav: .* hours of 2 channels are too much"):
        service.reconstruct("a", "one", song, False, nothing)
    with pytest.raises(DataError, match="too much"):
        service.encode("a", "one", song, False, nothing)


def test_small_files_of_much_are_refused(service, upload, tmp_path, monkeypatch):
    def refused(name, content, why):
        with pytest.raises(DataError, match=why):
            service.encode("a", "one", upload(name, content), True, nothing)

    refused("many.wav", noise(20, 100, 17), "of 17 channels are too much")
    soundfile.write(tmp_path / "zeros.flac", np.zeros(12 * 3600 * 1000 + 1, np.int16), 1000)
    zeros = (tmp_path / "zeros.flac").read_bytes()
    assert len(zeros) < 1 << 20
    refused("zeros.flac", zeros, "zeros.flac: 12.0 hours of 1 channels are too much")
    soundfile.write(tmp_path / "slow.wav", noise(21, 500), 1000)
    monkeypatch.setattr(listening, "_MAX_VALUES", 7999)  # 8000 at the model's rate
    refused("slow.wav", (tmp_path / "slow.wav").read_bytes(), "too much")
    monkeypatch.setattr(listening, "_MAX_VALUES", 8000)
    service.encode("a", "one", upload("slow.wav", (tmp_path / "slow.wav").read_bytes()), True, nothing)


def test_latents_that_say_what_they_are_not_are_refused_before_they_are_read(service, upload, tmp_path, monkeypatch):
    true = Latents.load(service.encode("a", "one", upload("song.wav", noise(22)), False, nothing))
    described = {f.name: getattr(true, f.name) for f in dataclasses.fields(true) if f.name != "z"}
    monkeypatch.setattr(Latents, "load", None)  # it would fail

    def refused(why, z=true.z, text=None, **changes):
        text = json.dumps({"format": 1} | described | changes) if text is None else text
        safetensors.numpy.save_file({"z": z}, tmp_path / "l.safetensors", {"audiovae_latents": text})
        file = upload("forged.safetensors", (tmp_path / "l.safetensors").read_bytes())
        for ask in (
            lambda: service.decode("a", "one", file, nothing),
            lambda: service.turn_channels("a", "one", file, {}, False, nothing),
            lambda: service.interpolate("a", "one", file, file, 0.5, False, nothing),
        ):
            with pytest.raises(DataError, match=why):
                ask()

    for rate in (1, 999, 10**9):
        refused("forged.safetensors: its sample rate must be from", sample_rate=rate)
    refused("too much", length=12 * 3600 * RATE + 1)
    refused("too much", channels=17)
    refused("too much", length=2**39, sample_rate=10**7)
    refused("metadata is damaged", length=10**400)
    refused("metadata is damaged", text="[" * 100_000)
    refused("contains a batch", batch=3, z=true.z.repeat(3, axis=0))
    refused("have 5 channels, but this model decodes to 2", channels=5)
    refused("does not fit this model", z=true.z.repeat(2, axis=0))
    refused("does not fit this model", z=true.z.repeat(2, axis=2))
    refused("frames", z=true.z.repeat(2, axis=1))


def test_an_interpolation_has_the_limits_of_a_file(service, upload, monkeypatch):
    # One file is long and one has many channels. Each is accepted, but not a file that is both.
    first, second = upload("long.wav", noise(23, 3000, 1)), upload("wide.wav", noise(24, 3000, 2))
    monkeypatch.setattr(listening, "_MAX_VALUES", 6000)
    service.interpolate("a", "one", first, second, 0.5, False, nothing)
    ends = [Latents.load(service.encode("a", "one", file, False, nothing)) for file in (first, second)]
    monkeypatch.setattr(listening, "_MAX_VALUES", 5999)
    with pytest.raises(DataError, match="^the interpolation: .* too much"):
        latent_edits.interpolate(service.models.codec("one"), *ends, 0.5)


def test_edits_in_blocks_equal_edits_at_once(service, upload, monkeypatch):
    kept = [
        service.encode(who, "one", upload(f"{who}.wav", noise(25 + i)), False, nothing) for i, who in enumerate("ab")
    ]
    a, b = map(Latents.load, kept)
    codec = service.models.codec("one")
    whole, spread = latent_edits.interpolate(codec, a, b, 0.3).z, latent_edits.deviations(a)
    np.testing.assert_allclose(spread, a.z.std(axis=(0, 1), dtype=np.float64), rtol=1e-12)
    monkeypatch.setattr(latent_edits, "_BLOCK", 50)
    assert len(latent_edits._parts(a.z.shape[1])) > 5
    np.testing.assert_array_equal(latent_edits.interpolate(codec, a, b, 0.3).z, whole)
    np.testing.assert_allclose(latent_edits.deviations(a), spread, rtol=1e-12)


def test_other_channel_counts_are_mixed_where_that_is_asked_for(service, upload):
    path = upload("six.wav", noise(10, 2000, 6))
    with pytest.warns(UserWarning, match="six.wav: the audio has 6 channels and no channel map, read as 5.1"):
        made = service.reconstruct("a", "one", path, True, nothing)
    assert soundfile.info(made.difference).channels == 2


def test_formats_that_browsers_cannot_play_are_written_as_wav(service, upload):
    song = upload("song.aiff", noise(11))
    made = service.reconstruct("a", "one", song, False, nothing)
    assert made.recordings[0].path.suffix == ".wav"
    np.testing.assert_array_equal(soundfile.read(made.recordings[0].path)[0], soundfile.read(song)[0])


def test_the_work_of_one_who_left_stops_and_leaves_nothing(service, upload):
    song = upload("song.wav", noise(12))

    def leave(share, text):
        if text != "loading the model":
            service.sessions.forget("a")

    with pytest.raises(DataError, match="nobody waits"):
        service.reconstruct("a", "one", song, False, leave)
    assert not list((service.sessions.folder / "made").glob("*/*"))
    service.sessions.close()
    with pytest.raises(Gone):
        service.reconstruct("b", "one", song, False, nothing)


@pytest.mark.slow
def test_audio_is_read_in_pieces(service, root, upload, monkeypatch):
    """For a file of many blocks, only the latents are held in memory as a whole."""
    monkeypatch.setattr(stream, "BLOCK", 4096)
    service = Service(Models(str(root), lambda path: Codec.load(path, chunk_length=4096)), service.sessions)
    largest, plain = [], np.concatenate

    def concatenate(parts, *args, **options):
        made = plain(list(parts), *args, **options)
        largest.append(made.size)
        return made

    monkeypatch.setattr(np, "concatenate", concatenate)
    length = 200_000
    made = service.reconstruct("a", "one", upload("long.wav", noise(13, length)), False, nothing)
    assert soundfile.info(made.difference).frames == length
    assert length / 8 * 3 in largest  # the latents, of a hop of 8 and 3 channels
    assert max(largest) < 2 * length * 0.8
