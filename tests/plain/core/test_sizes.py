"""Sums of dimensions, as they are written in a factory or in a dim_param."""

import pytest

from bertc.core.profiles import Dim, Range, profile_shapes, with_computed
from bertc.core.sizes import affine, derived, names_of
from bertc.core.tensors import TensorSpec


@pytest.mark.parametrize(
    ("text", "spelt", "size"),
    [
        ("past", "past", 5),
        ("past+1", "past + 1", 6),
        ("1 + past", "past + 1", 6),
        ("2*length", "2*length", 14),
        ("length*2 - 3", "2*length - 3", 11),
        ("length - -2", "length + 2", 9),
        ("past + length", "past + length", 12),
        ("3*(past + length) - past", "2*past + 3*length", 31),
        ("length + past - length + 1", "past + 1", 6),
    ],
)
def test_a_sum_has_one_spelling_and_a_size(text, spelt, size):
    found = affine(text)
    assert str(found) == spelt
    assert found.at({"past": 5, "length": 7}) == size


@pytest.mark.parametrize(
    "text", ["past*length", "length/2", "length // 2", "9 - past", "past +", "f(past)", "a.0", "?", "7", "past + 0.5", ""]
)
def test_what_is_no_sum_of_names(text):
    assert affine(text) is None


def test_a_name_is_not_computed():
    assert derived("past") is None
    assert derived(3) is None
    assert names_of((1, "b", "past + b", "2*c")) == ("b", "past", "c")


def test_the_shapes_of_a_profile_follow():
    spec = TensorSpec("mask", "int64", (2, "batch", "past + 1"))
    shapes = profile_shapes(spec, {"batch": Range(1, 8, 32), "past": Range(0, 16, 64)})
    assert shapes == ((2, 1, 1), (2, 8, 17), (2, 32, 65))


def test_a_minimum_leaves_nothing_empty():
    dims = with_computed({"length": Dim("length", 1, 64), "past": Dim("past", 0)}, ["length - 2", "past + 1", 4])
    assert (dims["length"].min, dims["past"].min) == (3, 0)
    assert with_computed({"n": Dim("n")}, ["2*n - 9"])["n"].min == 5
