"""Files of `torch.save`: read without torch, and nothing in them is called."""

import io
import os
import pickle
import zipfile

import numpy as np
import pytest
from oracles import needs_torch

from stgt_jax.convert.tensor_files import open_tensors
from stgt_jax.convert.torch_file import read_torch
from stgt_jax.errors import STGTError


def write_archive(path, program: bytes, storages=(), compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/byteorder", "little")
        for key, numbers in enumerate(storages):
            archive.writestr(f"archive/data/{key}", numbers)
    return path


def calls(function: str, argument: str = "V1\n") -> bytes:
    """A pickle, protocol 0, of what `function` of a module returns for one argument."""
    module, _, name = function.rpartition(".")
    return f"c{module}\n{name}\n({argument}tR.".encode()


def tensor(size, stride, key="0", offset=0, storage="FloatStorage") -> bytes:
    """A pickle of {"w": tensor}, as torch writes it."""

    class Writer(pickle.Pickler):
        def persistent_id(self, obj):
            return obj.pid if isinstance(obj, Storage) else None

    class Storage:
        pid = ("storage", Global(f"torch.{storage}"), key, "cpu", 6)

    class Tensor:
        def __reduce__(self):
            return Global("torch._utils._rebuild_tensor_v2"), (Storage(), offset, size, stride, False, {})

    return write_globals(Writer, {"w": Tensor()})


class Global:
    """Stands for a module's attribute that is not there."""

    def __init__(self, name):
        self.name = name

    def __call__(self):
        raise AssertionError


def write_globals(writer, value) -> bytes:
    out = io.BytesIO()

    class Python(pickle._Pickler):
        persistent_id = writer.persistent_id

        def save(self, obj, save_persistent_id=True):
            if isinstance(obj, Global):
                module, _, name = obj.name.rpartition(".")
                self.write(f"c{module}\n{name}\n".encode())
                return
            super().save(obj, save_persistent_id)

    Python(out, protocol=2).dump(value)
    return out.getvalue()


@pytest.mark.parametrize(
    "function",
    [
        "os.system", "posix.system", "nt.system", "builtins.eval", "__builtin__.eval", "builtins.exec",
        "builtins.__import__", "builtins.getattr", "builtins.open", "builtins.compile", "subprocess.Popen",
        "subprocess.check_output", "sys.exit", "importlib.import_module", "runpy.run_path", "operator.attrgetter",
        "pickle.loads", "_pickle.loads", "marshal.loads", "types.FunctionType", "types.CodeType", "ctypes.CDLL",
        "shutil.rmtree", "socket.create_connection", "webbrowser.open", "code.interact", "pty.spawn", "io.open",
        "functools.reduce", "weakref.finalize", "asyncio.run", "multiprocessing.Process", "signal.alarm",
    ],
)  # fmt: skip
def test_function_of_python_is_refused_by_its_name(tmp_path, function):
    marker = tmp_path / "called"
    path = write_archive(tmp_path / "w.pth", calls(function, f"Vtouch {marker}\n"))
    with pytest.raises(STGTError, match=r"is refused: its data\.pkl calls ") as refused:
        read_torch(path)
    assert function.replace("__builtin__", "builtins") in str(refused.value) and not marker.exists()


def test_chain_of_calls_is_refused(tmp_path):
    chain = b"c__builtin__\ngetattr\n(cos\n\nVsystem\ntR(Vtrue\ntR."
    with pytest.raises(STGTError, match=r"calls builtins\.getattr"):
        read_torch(write_archive(tmp_path / "a.pth", chain))

    class Nested:
        def __reduce__(self):
            return os.path.join, (Inner(), "x")

    class Inner:
        def __reduce__(self):
            return os.system, ("true",)

    with pytest.raises(STGTError, match=r"calls posix\.system|calls posixpath\.join"):
        read_torch(write_archive(tmp_path / "b.pth", pickle.dumps({"model": Nested()})))


def test_objects_of_other_packages_are_stepped_over_and_never_imported(tmp_path):
    chain = (
        b"(dVlr_scheduler\n" + calls("other_package.Schedule")[:-1] + b"sVconfig\n"
        b"cother_package.config\nConfig\n(VnameV\ntR(dVa\nI1\nsbsVcalled\n" + calls("other.f")[:-1] + b"(VxV\ntRs."
    )
    content = read_torch(write_archive(tmp_path / "w.pth", chain))
    assert {name: value.name for name, value in content.items()} == {
        "lr_scheduler": "other_package.Schedule", "config": "other_package.config.Config", "called": "other.f",
    }  # fmt: skip


def test_tensors_are_read_with_their_strides(tmp_path):
    numbers = np.arange(6, dtype=np.float32)
    for size, stride, offset, expected in (
        ((2, 3), (3, 1), 0, numbers.reshape(2, 3)),
        ((3, 2), (1, 3), 0, numbers.reshape(2, 3).T),
        ((2,), (1,), 4, numbers[4:]),
        ((), (), 5, numbers[5]),
        ((0, 3), (3, 1), 0, np.zeros((0, 3), np.float32)),
    ):
        path = write_archive(tmp_path / "w.pth", tensor(size, stride, offset=offset), [numbers.tobytes()])
        read = open_tensors(path)[0]["w"]
        assert read.shape == size
        np.testing.assert_array_equal(read.read(), expected)


@pytest.mark.parametrize(
    ("size", "stride", "offset", "complaint"),
    [
        ((3, 3), (3, 1), 0, "needs 36 bytes of archive/data/0, which has 24"),
        ((2, 3), (3, 1), 1, "needs 28 bytes"),
        ((1 << 40,), (0,), 0, "repeats its numbers"),
        ((2, 3), (-3, 1), 0, "no valid storage, size or stride"),
        ((2, 3), (1,), 0, "no valid storage, size or stride"),
        ((1 << 62, 1 << 62), (1, 1), 0, "bytes of archive"),
    ],
)
def test_tensor_that_its_numbers_cannot_fill_is_refused(tmp_path, size, stride, offset, complaint):
    path = write_archive(tmp_path / "w.pth", tensor(size, stride, offset=offset), [bytes(24)])
    with pytest.raises(STGTError, match=complaint):
        read_torch(path)


@pytest.mark.parametrize(
    ("program", "complaint"),
    [
        (b"\x80\x02r\xff\xff\xff\x7f.", "not a whole pickle"),  # a memo of 2^31 entries
        (b"\x80\x04\x8e" + (1 << 60).to_bytes(8, "little") + b"x.", "not a whole pickle"),  # bytes that are not there
        (b"\x80\x02}q\x00(", "not a whole pickle"),
        (b"", "not a whole pickle"),
        (b"\x80\x02]" + b"](" * 200_000 + b"." , "damaged|not a dict"),
        (b"(" * 500_000 + b"t" * 500_000 + b".", "not a dict"),
        (calls("builtins.bytearray", "L1000000000000L\n"), "not a dict"),
        (b"I1\n.", "holds a int, not a dict of weights"),
        (tensor((2, 3), (3, 1), key="9"), "its entry archive/data/9 is missing"),
        (b"(dVw\nPpid\nsb.", "refers to 'pid'"),
    ],
)  # fmt: skip
def test_damaged_and_hostile_pickles_are_one_line(tmp_path, program, complaint):
    path = write_archive(tmp_path / "w.pth", program, [bytes(24)])
    with pytest.raises(STGTError, match=complaint) as error:
        read_torch(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_compressed_archive_is_refused(tmp_path):
    path = write_archive(tmp_path / "w.pth", b"0" * 10_000_000, compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 100_000
    with pytest.raises(STGTError, match=r"is compressed, which torch\.save never does"):
        read_torch(path)


def test_damaged_numbers_are_noticed(tmp_path):
    path = write_archive(tmp_path / "w.pth", tensor((2, 3), (3, 1)), [bytes(24)])
    data = bytearray(path.read_bytes())
    data[data.index(b"archive/data/0") + len(b"archive/data/0") + 5] ^= 1
    path.write_bytes(data)
    with pytest.raises(STGTError, match="is damaged"):
        open_tensors(path)[0]["w"].read()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M", "before torch 1.6.*torch.load"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "only a pointer of Git LFS"),
        (b"<!DOCTYPE html><html>", "is a web page"),
        (b"PK\x03\x04 cut off", "not a file of torch.save, or it is not whole"),
        (b"", "not a file of torch.save, or it is not whole"),
    ],
)
def test_other_files_are_told_apart(tmp_path, content, complaint):
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(STGTError, match=complaint):
        read_torch(tmp_path / "w.pth")


def test_missing_file_and_unknown_kind_are_named(tmp_path):
    with pytest.raises(STGTError, match=r"none\.pth': no such file of weights"):
        open_tensors(tmp_path / "none.pth")
    (tmp_path / "w.h5").write_bytes(b"x")
    with pytest.raises(STGTError, match=r"known are \.safetensors, \.pth"):
        open_tensors(tmp_path / "w.h5")


@pytest.mark.slow
@needs_torch
def test_files_of_torch_itself_are_read_in_every_dtype(tmp_path):
    import torch

    base = torch.arange(24.0).reshape(4, 6)
    weights = {
        str(dtype): (base > 3 if dtype is torch.bool else base).to(dtype)
        for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32,
                      torch.int16, torch.int8, torch.uint8, torch.bool)
    }  # fmt: skip
    weights |= {
        "transposed": base.T, "slice": base[1:3, ::2], "parameter": torch.nn.Parameter(base), "same": base,
        "empty": torch.zeros(0, 4), "scalar": torch.tensor(3.5),
    }  # fmt: skip
    torch.save(weights, tmp_path / "w.pth")
    read, others = open_tensors(tmp_path / "w.pth")
    assert read.keys() == weights.keys() and not others
    for name, value in weights.items():
        value = value.detach()
        ours = read[name].read()
        assert tuple(value.shape) == ours.shape == read[name].shape
        np.testing.assert_array_equal(ours.astype(np.float64), value.double().numpy())


@pytest.mark.slow
@needs_torch
def test_training_checkpoint_of_torch_gives_its_model_alone(tmp_path):
    import torch

    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    checkpoint = {
        "model": torch.nn.DataParallel(model).state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3,
        "config": __import__("argparse").Namespace(lr=1e-3), "scaler": torch.amp.GradScaler("cpu").state_dict(),
        "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 2).state_dict(), "device": torch.device("cpu"),
    }  # fmt: skip
    torch.save(checkpoint, tmp_path / "c.pth")
    read, others = open_tensors(tmp_path / "c.pth")
    assert set(others) == checkpoint.keys() - {"model"} and read.keys() == {"weight", "bias"}
    np.testing.assert_array_equal(read["weight"].read(), model.weight.detach().numpy())
    torch.save(checkpoint, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(STGTError, match=r"before torch 1\.6"):
        open_tensors(tmp_path / "old.pth")
