import argparse
import errno
import gzip
import os
import pathlib
import resource
import signal
import tarfile
import weakref
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from nn_adv.zoo import files

STATE = {
    "conv1.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2),
    "bn1.num_batches_tracked": np.array(7, np.int64),
    "fc.bias": np.array([0.5, -1.0], np.float64),
}


def _assert_same(state, expected):
    assert set(state) == set(expected)
    for key, value in expected.items():
        assert isinstance(state[key], np.ndarray)
        assert state[key].dtype == value.dtype and state[key].shape == value.shape
        np.testing.assert_array_equal(state[key], value)


@pytest.mark.parametrize("name", ["x.pt", "x.pth", "x.pth.tar", "x.safetensors"])
def test_what_is_written_is_read_back(tmp_path, name):
    if name != "x.safetensors":
        pytest.importorskip("torch")
    path = tmp_path / "deep" / name
    turned = {**STATE, "turned": np.arange(6, dtype=np.float32).reshape(2, 3).T}
    files.write_state_dict(path, turned)
    _assert_same(files.read_state_dict(path), turned)
    assert os.listdir(path.parent) == [name]


def test_metadata_is_kept_beside_the_arrays(tmp_path):
    path = tmp_path / "x.safetensors"
    files.write_state_dict(path, STATE, metadata={"source": "somewhere"})
    assert files.read_metadata(path) == {"source": "somewhere"}
    files.write_state_dict(path, STATE)
    assert files.read_metadata(path) == {}


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    files.write_state_dict(path, STATE)

    def fail(arrays, filename, metadata):
        pathlib.Path(filename).write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(safetensors.numpy, "save_file", fail)
    with pytest.raises(OSError, match="no space left"):
        files.write_state_dict(path, {})
    _assert_same(files.read_state_dict(path), STATE)
    assert os.listdir(tmp_path) == ["x.safetensors"]


@pytest.mark.parametrize("name", ["x.safetensors", "x.pt"])
def test_a_full_disk_is_an_os_error(tmp_path, name):
    if name == "x.pt":
        pytest.importorskip("torch")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # an error of the write in place of the end of the process
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OSError, match="x"):
            files.write_state_dict(tmp_path / name, {"a": np.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert os.listdir(tmp_path) == []


def _tensors(torch):
    return {key: torch.from_numpy(value.copy()) for key, value in STATE.items()}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    ("outer_key", "wrap"),
    [
        (None, lambda weights: weights),
        (None, lambda weights: {"state_dict": weights, "epoch": 3}),
        (None, lambda weights: {"model": weights, "epoch": 3}),
        ("last", lambda weights: {"last": weights, "best": {}}),
        ("last", lambda weights: {"last": {"state_dict": weights}, "best": {}}),
    ],
)
def test_outer_entries_are_gone_through(tmp_path, wrap, outer_key, legacy):
    torch = pytest.importorskip("torch")
    path = tmp_path / "x.pt"
    torch.save(wrap(_tensors(torch)), path, _use_new_zipfile_serialization=not legacy)
    _assert_same(files.read_state_dict(path, outer_key=outer_key), STATE)


@pytest.mark.parametrize(
    ("prefixes", "keys"),
    [
        ((), ["module.model.conv", "module.fc", "mu"]),
        (("module.",), ["model.conv", "fc", "mu"]),
        (("module.", "model."), ["conv", "fc", "mu"]),
        # As published: a word inside a key takes its length off the *front* of it.
        (("fc",), ["module.model.conv", "dule.fc", "mu"]),
    ],
)
def test_prefixes_are_taken_off_as_robustbench_does(tmp_path, prefixes, keys):
    path = tmp_path / "x.safetensors"
    written = {"module.model.conv": STATE["fc.bias"], "module.fc": STATE["fc.bias"], "mu": STATE["fc.bias"]}
    files.write_state_dict(path, written)
    assert set(files.read_state_dict(path, prefixes=prefixes)) == set(keys)


def test_prefixes_that_make_keys_the_same_are_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    files.write_state_dict(path, {"module.a": STATE["fc.bias"], "a": STATE["fc.bias"]})
    with pytest.raises(ValueError, match=r"x\.safetensors has keys that are the same without 'module\.'"):
        files.read_state_dict(path, prefixes=("module.",))


def test_half_precisions_are_widened(tmp_path):
    torch = pytest.importorskip("torch")
    values = [1.0, -2.5, 1 / 3]
    torch.save({"a": torch.tensor(values).bfloat16(), "b": torch.tensor(values).half()}, tmp_path / "x.pt")
    half = {"a": np.array(values, ml_dtypes.bfloat16), "b": np.array(values, np.float16)}
    safetensors.numpy.save_file(half, tmp_path / "x.safetensors")
    for name in ("x.pt", "x.safetensors"):
        state = files.read_state_dict(tmp_path / name)
        for key, value in half.items():
            assert state[key].dtype == np.float32
            np.testing.assert_array_equal(state[key], value.astype(np.float32))


def test_numbers_among_the_weights_become_arrays(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"state_dict": {"a": torch.ones(2), "count": 3}}, tmp_path / "x.pt")
    state = files.read_state_dict(tmp_path / "x.pt")
    assert state["count"].shape == () and state["count"] == 3 and state["a"].shape == (2,)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "value",
    [np.float64(0.5), np.float16(1), np.uint8(4), np.str_("text"), np.array([0.5, 0.6]), np.array([1, "b"], object)],
    ids=lambda value: f"{type(value).__name__} {value.dtype}",
)
def test_values_of_numpy_beside_the_weights_do_no_harm(tmp_path, value, legacy):
    torch = pytest.importorskip("torch")
    path = tmp_path / "x.pt"
    torch.save({"state_dict": _tensors(torch), "accuracy": value}, path, _use_new_zipfile_serialization=not legacy)
    _assert_same(files.read_state_dict(path), STATE)


def test_no_tensor_outlives_the_reading(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    path = tmp_path / "x.pt"
    torch.save({"state_dict": _tensors(torch), "optimizer": {"momentum": torch.ones(3)}}, path)
    alive = []
    load = torch.load

    def watched(*args, **kwargs):
        content = load(*args, **kwargs)
        tensors = [*content["state_dict"].values(), content["optimizer"]["momentum"]]
        alive.extend(weakref.ref(tensor.untyped_storage()) for tensor in tensors)
        alive.extend(weakref.ref(tensor) for tensor in tensors)
        return content

    monkeypatch.setattr(torch, "load", watched)
    state = files.read_state_dict(path)
    assert len(alive) == 8 and not any(reference() is not None for reference in alive)
    assert all(value.base is None for value in state.values())


class _Bomb:
    """Makes a file when it is unpickled by a loader that runs what it is told to."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_file_is_refused_and_does_not_run(tmp_path, legacy):
    torch = pytest.importorskip("torch")
    path, went_off = tmp_path / "x.pt", tmp_path / "went_off"
    content = {"state_dict": _tensors(torch), "extra": _Bomb(went_off)}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(
        ValueError, match=r"x\.pt asks for code \(\w+\.mkdir\), which is never run here.*state_dict\(\)"
    ):
        files.read_state_dict(path)
    assert not went_off.exists()
    torch.load(path, weights_only=False)  # the bomb is real
    assert went_off.exists()


@pytest.mark.parametrize("thing", ["module", "namespace"])
def test_objects_of_classes_are_refused(tmp_path, thing):
    torch = pytest.importorskip("torch")
    path = tmp_path / "x.pt"
    torch.save(torch.nn.Linear(2, 2) if thing == "module" else {"a": argparse.Namespace(b=1)}, path)
    with pytest.raises(ValueError, match=r"x\.pt asks for code \((torch\.nn\S+Linear|argparse\.Namespace)\)"):
        files.read_state_dict(path)


def test_a_file_that_is_whole_but_not_to_be_read_is_not_called_damaged(tmp_path):
    torch = pytest.importorskip("torch")
    script, exotic = tmp_path / "script.pt", tmp_path / "exotic.safetensors"
    torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)).save(str(script))
    torch_safetensors = pytest.importorskip("safetensors.torch")
    torch_safetensors.save_file({"a": torch.ones(3).to(torch.float8_e4m3fn)}, exotic)
    for path, reason in ((script, "TorchScript"), (exotic, "float8_e4m3fn")):
        files.check(path, path.suffix)
        with pytest.raises(ValueError, match=f"{path.name} cannot be read.*{reason}") as caught:
            files.read_state_dict(path)
        assert not isinstance(caught.value, files.Damaged)


@pytest.mark.parametrize("kind", ["sparse", "meta"])
def test_tensors_without_plain_values_are_named(tmp_path, kind):
    torch = pytest.importorskip("torch")
    value = torch.eye(3).to_sparse() if kind == "sparse" else torch.empty(3, device="meta")
    torch.save({"a": value}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"x\.pt holds no plain tensor as 'a': can't convert"):
        files.read_state_dict(tmp_path / "x.pt")


@pytest.mark.parametrize("legacy", [False, True])
def test_errors_of_the_machine_are_not_called_damage(tmp_path, monkeypatch, legacy):
    torch = pytest.importorskip("torch")
    path = tmp_path / "x.pt"
    torch.save(_tensors(torch), path, _use_new_zipfile_serialization=not legacy)
    for error, kind in (
        (OSError(errno.EIO, "Input/output error"), OSError),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), MemoryError),
    ):

        def fail(*_, error=error, **__):
            raise error

        monkeypatch.setattr(torch, "load", fail)
        with pytest.raises(kind):
            files.read_state_dict(path)


@pytest.mark.parametrize("share", [0.001, 0.3, 0.5, 0.99])
def test_truncated_files_are_refused(tmp_path, share):
    torch = pytest.importorskip("torch")
    path = tmp_path / "x.pt"
    torch.save({"a": torch.ones(10_000)}, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ValueError, match=r"x\.pt is damaged, cut off .*: delete it and get it again"):
        files.read_state_dict(path)


def _flipped(content, places):
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 0x10
        yield place, bytes(damaged)


def test_flipped_bytes_are_found_by_the_checksums_of_the_file_or_change_nothing(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "x.pt"
    values = {"a": np.random.default_rng(0).normal(size=500).astype(np.float32), **STATE}
    torch.save({key: torch.from_numpy(value.copy()) for key, value in values.items()}, path)
    content = path.read_bytes()
    weights = content.index(values["a"].tobytes())
    for place, damaged in _flipped(content, range(weights, weights + values["a"].nbytes, 97)):
        path.write_bytes(damaged)
        with pytest.raises(files.Damaged, match=r"x\.pt is damaged, cut off or .*CRC.*: delete it and get it again"):
            files.read_state_dict(path)
        assert _is_refused(path), place
    num_found = 0
    directory = content.index(b"PK\x01\x02")
    for _, damaged in _flipped(content, [*range(0, directory, 23), *range(directory, len(content))]):
        path.write_bytes(damaged)
        try:
            _assert_same(files.read_state_dict(path), values)  # padding, or a date
        except ValueError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            num_found += 1
    assert num_found > 100


def _is_refused(path):
    try:
        files.check(path, path.suffix)
    except files.Damaged:
        return True
    return False


def test_files_without_checksums_are_read(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "x.pt"
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(_tensors(torch), path)
    finally:
        torch.serialization.set_crc32_options(True)
    files.check(path, ".pt")
    _assert_same(files.read_state_dict(path), STATE)


def test_flipped_bytes_of_the_older_format_are_told_or_leave_the_keys_and_shapes(tmp_path):
    """That format has no checksums."""
    torch = pytest.importorskip("torch")
    path = tmp_path / "x.pt"
    torch.save(_tensors(torch), path, _use_new_zipfile_serialization=False)
    num_told = 0
    for place, damaged in _flipped(path.read_bytes(), range(0, path.stat().st_size, 3)):
        path.write_bytes(damaged)
        try:
            files.read_state_dict(path)
        except ValueError as error:
            assert str(path) in str(error) and "\n" not in str(error), place
            num_told += 1
    assert num_told > 100


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
def test_a_check_takes_whole_files_only(tmp_path, name):
    path = tmp_path / "arrived"
    if name == "x.safetensors":
        files.write_state_dict(tmp_path / name, STATE)
        (tmp_path / name).rename(path)
    else:
        torch = pytest.importorskip("torch")
        torch.save(_tensors(torch), path)
    suffix = pathlib.Path(name).suffix
    files.check(path, suffix)
    content = path.read_bytes()
    for length in (0, 1, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(files.Damaged, match="arrived is (empty|damaged, cut off or no .*): delete it and get it"):
            files.check(path, suffix)


def _zip_of_something_else(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights/a.txt", "a" * 999)


def _tar(path, mode="w"):
    with tarfile.open(path, mode) as archive:
        archive.addfile(tarfile.TarInfo("weights.pt"))


def _torch_file(path, zipped):
    torch = pytest.importorskip("torch")
    torch.save(_tensors(torch), path, _use_new_zipfile_serialization=zipped)


_OTHERS = {
    "safetensors": (lambda path: safetensors.numpy.save_file(STATE, path), "a safetensors file: give it .*safetensors"),
    "gzip": (lambda path: path.write_bytes(gzip.compress(b"weights" * 99)), "a gzip file: unpack it"),
    "gzipped tar": (lambda path: _tar(path, "w:gz"), "a gzip file: unpack it"),
    "tar": (_tar, "a tar file: unpack it"),
    "zip": (_zip_of_something_else, r"a zip"),
    "PyTorch's": (lambda path: _torch_file(path, True), r"a zip, as PyTorch's files are: give it a name .*\.pt"),
    "PyTorch's older": (lambda path: _torch_file(path, False), r"a pickle, as PyTorch's older .*: give it .*\.pt"),
}
_OWN = {".pt": ("PyTorch's", "PyTorch's older"), ".safetensors": ("safetensors",)}


@pytest.mark.parametrize("kind", _OTHERS)
@pytest.mark.parametrize("suffix", _OWN)
def test_a_whole_file_of_another_kind_is_called_what_it_is(tmp_path, suffix, kind):
    write, message = _OTHERS[kind]
    path = tmp_path / f"x{suffix}"
    write(path)
    if kind in _OWN[suffix]:
        _assert_same(files.read_state_dict(path), STATE)
        return
    for read in (files.read_state_dict, lambda path: files.check(path, suffix)):
        with pytest.raises(ValueError, match=f"is {message}") as caught:
            read(path)
        assert not isinstance(caught.value, files.Damaged) and "delete" not in str(caught.value)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_the_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    files.write_state_dict("~/deep/x.safetensors", STATE, metadata={"a": "b"})
    _assert_same(files.read_state_dict("~/deep/x.safetensors"), STATE)
    assert files.read_metadata("~/deep/x.safetensors") == {"a": "b"}
    assert os.listdir(tmp_path) == ["deep"]


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty: delete it and get it again"),
        (b"<!DOCTYPE html><html><head>", "is a web page, not weights .*quota.*: delete it and get it again"),
        (b"\n  <HTML>Too many users", "is a web page, not weights"),
        (b'{"an": "answer"}', "is damaged, cut off or no .*file.*: delete it and get it again"),
        (
            b"version https://git-lfs.github.com/spec/v1",
            "is damaged, cut off or no .*file.*: delete it and get it again",
        ),
    ],
)
def test_what_is_not_weights_is_named(tmp_path, name, content, message):
    if name == "x.pt":
        pytest.importorskip("torch")
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        files.read_state_dict(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_truncated_safetensors_are_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    files.write_state_dict(path, STATE)
    path.write_bytes(path.read_bytes()[:-10])
    for read in (files.read_state_dict, files.read_metadata):
        with pytest.raises(ValueError, match=r"x\.safetensors is damaged, cut off or no safetensors file"):
            read(path)


def test_a_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*x\.safetensors"):
        files.read_metadata(tmp_path / "x.safetensors")
    with pytest.raises(FileNotFoundError, match=r"no file .*x\.pt"):
        files.read_state_dict(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("content", "outer_key", "message"),
    [
        ([1.0], None, "must hold a state dict, arrays by name: the file is a list"),
        ({"last": [1.0]}, "last", "must hold a state dict, arrays by name: entry 'last' is a list"),
        ({"best": {}, "epoch": 1}, "last", "has no entry 'last': it has 'best', 'epoch'"),
        ({"net": {"a": 1.0}, "epoch": 1}, None, "holds a dict as 'net' .*outer_key, out of 'net', 'epoch'"),
        ({3: 1.0}, None, "must hold arrays by name, got the name 3"),
        ({"a": None}, None, "holds a NoneType as 'a'"),
    ],
)
def test_content_that_is_no_state_dict_is_named(tmp_path, content, outer_key, message):
    torch = pytest.importorskip("torch")
    path = tmp_path / "x.pt"
    torch.save(content, path)
    with pytest.raises(ValueError, match=message) as caught:
        files.read_state_dict(path, outer_key=outer_key)
    assert str(path) in str(caught.value)


def test_without_torch_the_error_says_what_to_install(tmp_path, monkeypatch):
    path = tmp_path / "x.pt"
    path.write_bytes(b"PK")
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    for call in (lambda: files.read_state_dict(path), lambda: files.write_state_dict(tmp_path / "y.pt", STATE)):
        with pytest.raises(ImportError, match=r"\.pt is a file of PyTorch's: pip install 'nn_adv\[zoo\]'"):
            call()
