"""The reader: equal to torch.load, without executing files, and never silently wrong."""

import collections
import contextlib
import copyreg
import io
import pickle
import resource
import time
import tracemalloc
import zipfile

import exploits
import fuzz_torch_files
import ml_dtypes
import numpy as np
import pytest
from conftest import GOLDEN

from audiovae_jax.errors import CheckpointError
from audiovae_jax.torch_io import read_checkpoint
from audiovae_jax.torch_io.files.unpickle import Placeholder
from audiovae_jax.torch_io.files.writer import write_checkpoint


def _values(torch):
    t = torch.arange(24.0).reshape(2, 3, 4)
    plain = {
        "tensors": {
            "whole": t,
            "transposed": t.transpose(0, 2),
            "sliced": t[:, 1:, ::2],
            "expanded": torch.ones(1, 3).expand(5, 3),
            "empty": torch.empty(0, 3),
            "scalar": torch.tensor(3.0),
            "parameter": torch.nn.Parameter(t),
            "complex": torch.complex(t, t + 1),
            "conjugate": torch.complex(t, t + 1).conj(),
            "negative": torch.complex(t, t + 1).conj().imag,
            "bool": t > 3,
        },
        "numbers": [1, -1, 2**70, 1.5, True, None, 1 + 2j, np.float32(2.5)],
        "texts": ("ü", b"bytes", bytearray(b"bytes")),
        "ordered": collections.OrderedDict(x=1),
        "default": collections.defaultdict(list, {"q": 1}),
        "set": {1, 2},
        "size": t.shape,
        "numpy": np.arange(6.0).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
    }
    kinds = ["float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "complex128"]
    new = ["float8_e4m3fn", "float8_e5m2", "uint16", "uint32"]
    plain["kinds"] = {kind: t.to(getattr(torch, kind)) for kind in kinds + new}
    return plain


def _require_same(ours, theirs, torch, where=""):
    if isinstance(theirs, torch.Tensor):
        kind = str(theirs.dtype).removeprefix("torch.")
        assert str(ours.dtype) == kind, where
        wide = torch.complex128 if theirs.is_complex() else torch.float64
        theirs = theirs.detach().resolve_conj().resolve_neg().to(wide).numpy()
        np.testing.assert_array_equal(ours.astype(theirs.dtype), theirs, err_msg=where)
    elif isinstance(theirs, np.ndarray):
        np.testing.assert_array_equal(ours, theirs, err_msg=where)
        assert ours.dtype == theirs.dtype
    elif isinstance(theirs, dict):
        assert list(ours) == list(theirs), where
        for key in theirs:
            _require_same(ours[key], theirs[key], torch, f"{where}.{key}")
    elif isinstance(theirs, (list, tuple)):
        assert len(ours) == len(theirs), where
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            _require_same(a, b, torch, f"{where}[{i}]")
    else:
        assert ours == theirs, where


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "stream"])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_kind_of_value_is_read_as_torch_reads_it(tmp_path, protocol, zipped):
    torch = pytest.importorskip("torch")
    values = _values(torch)
    path = tmp_path / "x.pt"
    torch.save(values, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    _require_same(read_checkpoint(path), values, torch)


def test_tensors_that_shared_a_storage_share_it_still():
    read = read_checkpoint(GOLDEN / "save_model.pt")
    for name, tensor in read["latent_statistics"].items():
        assert np.shares_memory(tensor, read["model_state_dict"][name])


def test_written_files_are_read_here_and_by_torch(tmp_path):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    values = {
        "a": array, "transposed": array.T, "again": array, "scalar": np.array(3.0, np.float32), "none": None,
        "bf16": array.astype(ml_dtypes.bfloat16), "bool": array > 2, "empty": np.zeros((0, 2), np.int64),
        "nested": {"list": [1, 2**40, -(2**70)], "tuple": (1.5, True, "ü"), 0: {1: "one"}},
    }  # fmt: skip
    path = tmp_path / "x.pt"
    write_checkpoint(path, values)
    read = read_checkpoint(path)
    assert fuzz_torch_files.same(read, {**values, "transposed": np.ascontiguousarray(array.T)})
    assert np.shares_memory(read["a"], read["again"])
    with pytest.raises(TypeError, match=r"nested.list\[0\] is a object, which a checkpoint cannot contain"):
        write_checkpoint(path, {"nested": {"list": [object()]}})
    assert fuzz_torch_files.same(read_checkpoint(path), read)
    assert [p.name for p in tmp_path.iterdir()] == ["x.pt"]
    torch = pytest.importorskip("torch")
    _require_same(read, torch.load(path), torch)
    _require_same(read, torch.load(path, mmap=True), torch)


def test_lightnings_objects_stay_names():
    read = read_checkpoint(GOLDEN / "lightning.ckpt")
    partial = read["hyper_parameters"]["optimizer"]
    assert isinstance(partial, Placeholder)
    assert str(partial.function) == "functools.partial"
    assert str(partial.state[0]) == "torch.optim.adamw.AdamW"
    assert partial.state[2] == {"lr": 1.5e-4}


def test_omegaconfs_containers_are_what_they_hold(tmp_path):
    e = exploits

    def instance(cls, *state):
        return e.name("omegaconf", cls) + pickle.EMPTY_TUPLE + pickle.NEWOBJ + e.dictionary(*state) + pickle.BUILD

    nodes = [instance("AnyNode", e.text("_val"), bytes([ord("K"), value])) for value in (1, 2)]
    inner = instance("ListConfig", e.text("_content"), e.sequence(*nodes), e.text("_parent"), pickle.NONE)
    outer = instance("DictConfig", e.text("_content"), e.dictionary(e.text("strides"), inner))
    e.in_zip(tmp_path / "x.pt", outer)
    assert read_checkpoint(tmp_path / "x.pt") == {"state_dict": {"strides": [1, 2]}}


class _Unpickler(pickle.Unpickler):
    def persistent_load(self, parts):
        return parts


@pytest.fixture
def extensions():
    for code, (module, name) in exploits.EXTENSIONS.items():
        copyreg.add_extension(module, name, code)
    yield
    for code, (module, name) in exploits.EXTENSIONS.items():
        copyreg.remove_extension(module, name, code)


def test_no_exploit_is_executed(tmp_path, extensions):
    """Each exploit works in Python's unpickler. Our reader returns an inert value or raises CheckpointError."""
    marker = tmp_path / "marker"
    (tmp_path / "marker.py").write_text(f"open({str(marker)!r}, 'w').close()")
    executed = []
    found = exploits.exploits(marker)
    for name, opcodes in found.items():
        for i, write in enumerate((exploits.in_zip, exploits.in_stream)):
            for opcodes_in_place in (opcodes, exploits.dictionary(exploits.text("deep"), exploits.sequence(opcodes))):
                path = tmp_path / f"{i}.pt"
                write(path, opcodes_in_place)
                with contextlib.suppress(CheckpointError):
                    read_checkpoint(path)
                if marker.exists():
                    executed.append(name)
                    marker.unlink()
    assert not executed
    dead = []
    for name in sorted(found.keys() - set(exploits.NOT_PYTHONS)):
        with contextlib.suppress(Exception):  # some fail after the exploit has run
            _Unpickler(io.BytesIO(b"\x80\x04" + found[name] + b".")).load()
        deadline = time.monotonic() + 5
        while not marker.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        if not marker.exists():
            dead.append(name)
        marker.unlink(missing_ok=True)
    assert not dead
    assert len(found) - len(exploits.NOT_PYTHONS) >= 30


def _peak_memory():
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.slow
@pytest.mark.parametrize("write", [exploits.in_zip, exploits.in_stream])
def test_bombs_are_refused_within_bounded_memory(tmp_path, write):
    for name, opcodes in exploits.bombs().items():
        path = tmp_path / "bomb.pt"
        if write is exploits.in_zip:
            write(path, opcodes, storages={"0": bytes(16)})
        else:
            write(path, opcodes)
        before, begin = _peak_memory(), time.process_time()
        with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
            read_checkpoint(path)
        # Without the reader's bounds these take minutes to hours, and all memory.
        assert time.process_time() - begin < 30, name
        assert _peak_memory() - before < 400 << 20, name


def test_tensors_of_one_storage_cannot_unfold_without_end(tmp_path):
    bomb = exploits.bombs()["one storage a million times"]
    exploits.in_zip(tmp_path / "x.pt", bomb, storages={"0": bytes(4000)})
    with pytest.raises(CheckpointError, match="4,000 bytes of storages claim to be 400,004,000,000 bytes of tensors"):
        read_checkpoint(tmp_path / "x.pt")


def test_views_of_a_storage_of_booleans_cost_what_they_show(tmp_path):
    view = exploits.tensor(shape=[1], strides=[1], count=4 << 20, kind="BoolStorage")
    exploits.in_zip(tmp_path / "x.pt", exploits.sequence(*[view] * 200), storages={"0": b"\2" * (4 << 20)})
    tracemalloc.start()
    read = read_checkpoint(tmp_path / "x.pt")["state_dict"]
    assert tracemalloc.get_traced_memory()[1] < 30 << 20
    tracemalloc.stop()
    assert all(tensor.dtype == np.bool_ and tensor.item() is True for tensor in read)


def test_a_directory_too_large_to_parse_is_refused_before(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02}.")
        for i in range(300):
            archive.writestr(f"{i:060000}", b"")
    with pytest.raises(CheckpointError, match=r"its directory of [\d,]+ bytes is too large"):
        read_checkpoint(tmp_path / "x.pt")


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
def test_values_that_are_not_ours_to_know_stay_inert(tmp_path):
    torch = pytest.importorskip("torch")
    values = {
        "empty": np.zeros(0), "text": np.str_("x"), "texts": np.array(["a", "b"]), "objects": np.array([None, {}]),
        "time": np.datetime64("2020-01-01"), "nothing": b"", "half": torch.zeros(2, dtype=torch.complex32),
        "kept": torch.ones(2),
    }  # fmt: skip
    for protocol in (2, 5):
        torch.save(values, tmp_path / "x.pt", pickle_protocol=protocol)
        read = read_checkpoint(tmp_path / "x.pt")
        assert list(read) == list(values)
        assert read["empty"].shape == (0,)
        assert read["nothing"] == b""
        np.testing.assert_array_equal(read["kept"], 1)
        for name in ("text", "texts", "objects", "time", "half"):
            assert isinstance(read[name], Placeholder), name


def test_zip_files_that_torch_does_not_write_are_refused(tmp_path):
    path = tmp_path / "x.pt"
    exploits.in_zip(path, pickle.EMPTY_DICT, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match=r"its member archive/byteorder is compressed"):
        read_checkpoint(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme", "hello")
    with pytest.raises(CheckpointError, match=r"a zip file, but not one of torch's"):
        read_checkpoint(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("code/data.pkl", b"\x80\x02}.")
        archive.writestr("code/constants.pkl", b"")
    with pytest.raises(CheckpointError, match="TorchScript archive"):
        read_checkpoint(path)
    # Two entries of the directory that share one member's bytes, as overlapping bombs do.
    exploits.in_zip(path, pickle.EMPTY_DICT, storages={"0": bytes(4096), "1": bytes(4096)})
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"PK\x01\x02") - 4096] + data[data.index(b"PK\x01\x02") :])
    with pytest.raises(CheckpointError):
        read_checkpoint(path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lightning.ckpt", "save_model.pt"])
def test_damaged_files_are_refused_or_read_as_they_were(name):
    """A short version; `tests/fuzz_torch_files.py` runs a longer one."""
    path = GOLDEN / name
    data = path.read_bytes()
    outcomes = fuzz_torch_files.fuzz(path, fuzz_torch_files.flips(data, 200))
    assert outcomes.keys() <= {"refused", "unchanged"}, outcomes
    assert outcomes["refused"] > 100
    outcomes = fuzz_torch_files.fuzz(path, fuzz_torch_files.cuts(data, 60))
    assert outcomes == {"refused": 60}


def test_the_older_format_is_cut_and_flipped_without_another_error():
    # The format has no checksums, so flipped bits of weights or names are not detected.
    path = GOLDEN / "bare_legacy.pt"
    data = path.read_bytes()
    outcomes = fuzz_torch_files.fuzz(path, fuzz_torch_files.flips(data, 200))
    assert outcomes.keys() <= {"refused", "unchanged", "SILENTLY DIFFERENT"}, outcomes
    assert fuzz_torch_files.fuzz(path, fuzz_torch_files.cuts(data, 60)) == {"refused": 60}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "neither a torch file nor safetensors"),
        (b"hello, world", "neither a torch file nor safetensors"),
        (b"\x80\x02]q\x00.", "a pickle, but not one of torch's"),
        (b"\x80\x00]q\x00.", "its protocol 0 is not one of 2 to 5"),
        (b"PK\x03\x04", "its directory is damaged"),
        (b"\x08\0\0\0\0\0\0\0{nonsens", "safetensors header or data is damaged"),
    ],
)
def test_other_files_are_named(tmp_path, content, message):
    path = tmp_path / "x.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as error:
        read_checkpoint(path)
    assert str(path) in str(error.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"nothing.pt: there is no such file"):
        read_checkpoint(tmp_path / "nothing.pt")
    with pytest.raises(CheckpointError, match="Is a directory"):
        read_checkpoint(tmp_path)


def test_a_pickled_module_is_refused_with_the_remedy(tmp_path):
    opcodes = exploits.name("torch.nn.modules.linear", "Linear") + pickle.EMPTY_TUPLE + pickle.NEWOBJ
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02" + opcodes + b".")
    with pytest.raises(CheckpointError, match=r"torch.nn.modules.linear.Linear .* save the model's state_dict\(\)"):
        read_checkpoint(tmp_path / "x.pt")


def test_keys_can_be_left_unread():
    read = read_checkpoint(GOLDEN / "lightning.ckpt", skip=("optimizer_states",))
    assert "optimizer_states" not in read
    assert "state_dict" in read
