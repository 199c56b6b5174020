"""Goldens come back as they were, are the same bytes each time, and never pass when damaged or empty."""

import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bertc.artifact.goldens import load_goldens, save_goldens
from bertc.core.errors import ArtifactError, DataError
from bertc.data.samples import Sample

arrays = st.sampled_from([np.int64, np.int32, np.bool_, np.float32, np.float16, np.float64]).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
)
named = st.dictionaries(st.text("abz_./:é0", min_size=1, max_size=8), arrays, min_size=1, max_size=3)
golden = st.tuples(st.text("a, 1é", max_size=9), named, st.lists(st.integers(0, 9), max_size=2), named)


@settings(max_examples=60, deadline=None)
@given(st.lists(golden, min_size=1, max_size=4))
def test_goldens_come_back_as_they_were(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("goldens") / "goldens.npz"
    samples = [Sample(label, feeds, tuple(dead)) for label, feeds, dead, _ in rows]
    outputs = [out for *_, out in rows]
    digest = save_goldens(path, samples, outputs)
    found, results = load_goldens(path)
    assert [(s.label, s.dead_rows) for s in found] == [(s.label, s.dead_rows) for s in samples]
    for before, after in zip([s.feeds for s in samples] + outputs, [s.feeds for s in found] + list(results), strict=True):
        assert set(before) == set(after)
        for name, array in before.items():
            assert (array.dtype, array.shape) == (after[name].dtype, after[name].shape)
            np.testing.assert_array_equal(array, after[name])
    assert save_goldens(path, found, results) == digest


def goldens(folder):
    path = folder / "goldens.npz"
    save_goldens(path, [Sample("one", {"x": np.arange(300.0)}, (1,))], [{"y": np.ones(3, np.float32)}])
    return path


def test_golden_keys(tmp_path):
    with np.load(goldens(tmp_path), allow_pickle=False) as found:
        assert sorted(found.files) == ["0/dead", "0/in/x", "0/label", "0/out/y"]


def test_goldens_are_the_same_bytes_at_any_time_and_in_any_layout(tmp_path):
    with zipfile.ZipFile(goldens(tmp_path)) as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    array, one = np.arange(6.0).reshape(2, 3), {"y": np.ones(1)}
    digests = {save_goldens(tmp_path / "g.npz", [Sample("s", {"x": x})], [one]) for x in (array, np.asfortranarray(array))}
    assert len(digests) == 1


@pytest.mark.parametrize(
    "mend", [lambda b: b"", lambda b: b[:-40], lambda b: b[: len(b) // 2], lambda b: b[:500] + b"?" + b[501:]]
)
def test_damaged_goldens(tmp_path, mend):
    path = goldens(tmp_path)
    path.write_bytes(mend(path.read_bytes()))
    with pytest.raises(ArtifactError, match="is damaged"):
        load_goldens(path)


def test_incomplete_goldens(tmp_path):
    with pytest.raises(ArtifactError, match="no goldens at"):
        load_goldens(tmp_path / "goldens.npz")
    with zipfile.ZipFile(tmp_path / "goldens.npz", "w"):
        pass
    with pytest.raises(ArtifactError, match="lacks samples"):
        load_goldens(tmp_path / "goldens.npz")
    whole = {"0/in/x": np.ones(1), "0/out/y": np.ones(1), "0/label": np.array("a"), "0/dead": np.zeros(0, int)}
    for absent in whole:
        np.savez(tmp_path / "goldens.npz", **{key: array for key, array in whole.items() if key != absent})
        with pytest.raises(ArtifactError, match="sample 0 is incomplete"):
            load_goldens(tmp_path / "goldens.npz")
    np.savez(tmp_path / "goldens.npz", **{key.replace("0/", "1/"): array for key, array in whole.items()})
    with pytest.raises(ArtifactError, match=r"lacks samples \(found 1\)"):
        load_goldens(tmp_path / "goldens.npz")
    np.savez(tmp_path / "goldens.npz", **(whole | {"0/in/x": np.array([None])}))
    with pytest.raises(ArtifactError, match="is damaged"):
        load_goldens(tmp_path / "goldens.npz")


def test_goldens_of_nothing_are_refused(tmp_path):
    one = Sample("one", {"x": np.ones(1)})
    for samples, outputs in (([], []), ([one], []), ([one], [{}]), ([Sample("none", {})], [{"y": np.ones(1)}])):
        with pytest.raises(DataError, match="goldens"):
            save_goldens(tmp_path / "goldens.npz", samples, outputs)
    with pytest.raises(DataError, match="dtype object"):
        save_goldens(tmp_path / "goldens.npz", [one], [{"y": np.array([None])}])


def test_goldens_that_bertc_cannot_have_written(tmp_path):
    """Compressed, so that they may be larger than their file; or with arrays of another kind than a sample's."""
    whole = {"0/in/x": np.ones(1), "0/out/y": np.ones(1), "0/label": np.array("a"), "0/dead": np.zeros(0, int)}
    np.savez_compressed(tmp_path / "goldens.npz", **whole)
    with pytest.raises(ArtifactError, match="must not be compressed"):
        load_goldens(tmp_path / "goldens.npz")
    for name, array in (
        ("0/code", np.ones(1)),
        ("0/label", np.array(["a", "b"])),
        ("0/dead", np.ones(1)),
        ("0/dead", np.array(["x"])),
    ):
        np.savez(tmp_path / "goldens.npz", **(whole | {name: array}))
        with pytest.raises(ArtifactError, match=f"sample 0 has {name[2:]!r}"):
            load_goldens(tmp_path / "goldens.npz")
