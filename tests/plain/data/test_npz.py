"""A .npz of somebody else: no code, no array larger than the file, no name twice; the error names the member."""

from __future__ import annotations

import io
import pickle
import struct
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from bertc.core.errors import DataError
from bertc.data import npz
from bertc.data.npz import read_npz

HUGE = 10**12


def member(descr="<f4", shape="(2, 2)", data=bytes(16), extra="", version=b"\x01\x00"):
    """The bytes of an .npy with any header."""
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, {extra}}}".encode() + b"\n"
    size = struct.pack("<H" if version == b"\x01\x00" else "<I", len(text))
    return b"\x93NUMPY" + version + size + text + data


def archive(path, *members, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as made:
        for name, data in members:
            made.writestr(name, data)
    return path


def refused(path, *words, **options):
    with pytest.raises(DataError) as caught:
        read_npz(path, **options)
    for word in (path, *words):
        assert str(word) in str(caught.value), str(caught.value)


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_does_not_run(tmp_path):
    ran = tmp_path / "ran"
    np.savez(tmp_path / "x.npz", x=np.array([Payload(ran)], object))
    refused(tmp_path / "x.npz", "x.npy", "Python objects")
    bare = pickle.dumps(Payload(ran))
    for name, data in (
        ("x.npy", bare),
        ("x.npy", member("|O", "(1,)", bare)),
        ("x.pkl", bare),
        ("x.npy", member([["a", "|O"]], "(1,)")),
    ):
        refused(archive(tmp_path / "y.npz", (name, data)), name)
    assert not ran.exists()
    pickle.loads(bare)  # the payload is a real one
    assert ran.exists()


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (member(shape=f"({HUGE},)"), "takes 4000000000000 bytes; it holds 16"),
        (member(shape=f"({HUGE}, {HUGE}, {HUGE})"), "it holds 16"),
        (member(shape="(-1,)"), "[-1]"),
        (member(shape="(-2, -2)"), "[-2, -2]"),
        (member(shape="(True, 4)"), "which no array has"),
        (member(shape="(2, 3)"), "takes 24 bytes; it holds 16"),
        (member(shape="(1,)"), "takes 4 bytes; it holds 16"),
        (member(shape="'ab'"), "no header"),
        (member("<U500000000", "()"), "it holds 16"),
        (member("<U0", f"({HUGE},)", b""), "not of plain numbers"),
        (member([("a", "<f4")], "(4,)"), "not of plain numbers"),
        (member("os.system", "(4,)"), "no header"),
        (member("<U99999999999", "()"), "no header"),
        (member(shape="(" * 3000 + ")" * 3000), "no header"),
        (member(shape="(4,)", extra=f"'more': {'1' * 9000}"), "no header"),
        (member(version=b"\x09\x00"), "no header"),
        (member(version=b"\x03\x00"), "no header"),
        (b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1) + b"{}", "no header"),
        (b"", "no header"),
        (b"hello", "no header"),
    ],
)
def test_a_header_that_lies(tmp_path, data, word):
    refused(archive(tmp_path / "x.npz", ("good.npy", member()), ("bad.npy", data)), "bad.npy", word)


def test_no_rows_of_any_width_is_an_array(tmp_path):
    assert read_npz(archive(tmp_path / "x.npz", ("a.npy", member(shape="(0, 7)", data=b""))))["a"].shape == (0, 7)


def test_a_deflate_bomb_is_refused_by_what_it_declares(tmp_path, monkeypatch):
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as made, made.open("x.npy", "w") as file:
        file.write(member("|u1", f"({64 * 2**20},)", b""))
        for _ in range(64):
            file.write(bytes(2**20))
    (tmp_path / "x.npz").write_bytes(bomb.getvalue())
    assert len(bomb.getvalue()) < 2**17
    monkeypatch.setattr(npz, "available_bytes", lambda: 32 * 2**20)
    start = time.monotonic()
    refused(tmp_path / "x.npz", "need 0.1 GiB", "memory free")
    assert time.monotonic() - start < 0.1  # nothing was inflated
    refused(tmp_path / "x.npz", "x.npy", "must not be compressed", stored=True)
    monkeypatch.setattr(npz, "available_bytes", lambda: 2**30)
    assert read_npz(tmp_path / "x.npz")["x"].nbytes == 64 * 2**20


def test_a_member_that_inflates_to_more_than_it_declares(tmp_path):
    whole = member("|u1", "(40000,)", bytes(40000))
    data = bytearray(archive(tmp_path / "x.npz", ("x.npy", whole), method=zipfile.ZIP_DEFLATED).read_bytes())
    for signature, at in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        place = data.index(signature) + at
        data[place : place + 4] = struct.pack("<I", len(whole) - 30000)
    (tmp_path / "x.npz").write_bytes(data)
    refused(tmp_path / "x.npz", "x.npy", "takes 40000 bytes; it holds 10000")


def test_names(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate"):
        archive(tmp_path / "x.npz", ("x.npy", member()), ("x.npy", member()))
    refused(tmp_path / "x.npz", "'x.npy' twice")
    refused(archive(tmp_path / "y.npz", ("notes.txt", b"")), "notes.txt")
    refused(archive(tmp_path / "z.npz", ("x.npy", member()), method=zipfile.ZIP_LZMA), "x.npy", "compressed")


def test_a_wrong_checksum_is_found(tmp_path):
    path = archive(tmp_path / "x.npz", ("x.npy", member(data=b"abcdefghijklmnop")))
    path.write_bytes(path.read_bytes().replace(b"abcdefgh", b"abcdefgX"))
    refused(path, "CRC")


def test_what_numpy_writes_is_read(tmp_path):
    arrays = {
        "a": np.arange(6.0).reshape(2, 3),
        "b/c": np.array("é"),
        "d": np.asfortranarray(np.ones((2, 3), np.int32)),
        "e": np.ones(0),
    }
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "x.npz", **arrays)
        found = read_npz(tmp_path / "x.npz")
        assert found.keys() == arrays.keys()
        assert all(np.array_equal(found[name], array) and found[name].dtype == array.dtype for name, array in arrays.items())
