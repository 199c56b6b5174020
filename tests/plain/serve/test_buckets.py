"""Length buckets: the best ones by brute force, the rule for their number, and the profiles made of them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertc.core.errors import InputError, RecipeError
from bertc.core.profiles import Dim, parse_profile
from bertc.serve import buckets
from bertc.serve.traffic import Traffic, TrafficModel

Shapes = dict[tuple[int, int], int]  # (batch, longest): requests
SHAPES = st.dictionaries(st.tuples(st.integers(1, 5), st.integers(1, 40)), st.integers(1, 9), min_size=1, max_size=9)


def traffic(shapes: Shapes, spare: int = 0) -> Traffic:
    """Requests whose members are as long as their longest, less `spare` tokens each request."""
    ordered = sorted(shapes.items(), key=lambda item: (item[0][1], item[0][0]))
    rows = [(batch, longest, count, count * (batch * longest - spare)) for (batch, longest), count in ordered]
    return Traffic(*np.array(rows, np.int64).T)


def computed(shapes: Shapes, bounds: tuple[int, ...]) -> int:
    """The objective as it is defined: each request padded to the smallest bound that holds it."""
    return sum(count * batch * min(b for b in bounds if b >= longest) for (batch, longest), count in shapes.items())


@settings(deadline=None, max_examples=150)
@given(SHAPES, st.integers(1, 4), st.sampled_from([1, 3, 8]), st.sampled_from([None, 40]))
def test_no_other_bounds_compute_fewer_tokens(shapes: Shapes, most: int, multiple: int, limit: int | None) -> None:
    found = buckets.plan_buckets(traffic(shapes), most, multiple, limit)
    longest = [longest for _, longest in shapes]
    possible = sorted({min(-(-n // multiple) * multiple, limit or 10**6) for n in longest})
    assert len(found.choices) == min(most, len(possible))
    for count, choice in enumerate(found.choices, 1):
        every = [c for c in itertools.combinations(possible, count) if c[-1] >= max(longest)]
        assert choice.computed == min(computed(shapes, c) for c in every)
        assert choice.computed == computed(shapes, choice.bounds)
        assert len(choice.bounds) == count


@settings(deadline=None, max_examples=60)
@given(SHAPES, st.integers(40, 60))
def test_the_last_bucket_reaches_where_it_was_asked_to(shapes: Shapes, reach: int) -> None:
    found = buckets.plan_buckets(traffic(shapes), 3, 8, None, reach)
    possible = sorted({min(-(-n // 8) * 8, reach) for _, n in shapes} | {reach})
    for count, choice in enumerate(found.choices, 1):
        every = [c for c in itertools.combinations(possible, count) if c[-1] == reach]
        assert choice.computed == min(computed(shapes, c) for c in every)
        assert choice.bounds[-1] == reach
    assert buckets.bucket_profiles(traffic(shapes), found.choices[-1].bounds, TrafficModel())[-1]["length"].max == reach


@settings(deadline=None, max_examples=60)
@given(SHAPES)
def test_every_request_that_was_seen_fits_a_profile(shapes: Shapes) -> None:
    found = traffic(shapes)
    for choice in buckets.plan_buckets(found, 4, 8).choices:
        made = buckets.bucket_profiles(found, choice.bounds, TrafficModel())
        for batch, longest in shapes:
            fits = [p for p in made if p["length"].min <= longest <= p["length"].max]
            assert len(fits) == 1 and fits[0]["batch"].min <= batch <= fits[0]["batch"].max


def test_waste_is_what_is_padded_and_the_part_inside_batches_stays() -> None:
    found = buckets.plan_buckets(traffic({(2, 10): 3, (1, 20): 1}, spare=4), 5, 1)
    assert found.tokens == 3 * 16 + 16 and found.in_batches == 3 * 4 + 4
    assert [c.computed for c in found.choices] == [20 * 7, 10 * 6 + 20]
    assert found.waste(found.choices[0]) == pytest.approx(1 - 64 / 140)
    assert found.choices[-1].computed - found.tokens == found.in_batches


def test_the_number_of_buckets_is_where_one_more_is_not_worth_it() -> None:
    found = buckets.plan_buckets(traffic({(1, 10): 100, (1, 100): 100, (1, 101): 1}), 3)
    # 1 bucket computes 20301 tokens; 2 compute 101 * 101 + 1000 = 11201; 3 compute 11101, which is 0.9 % fewer.
    assert [c.computed for c in found.choices] == [20301, 11201, 11101]
    assert buckets.choose_bucket_count(found, worth=0.02) == (1, "one bucket more saves 0.9% of the tokens, under 2.0%")
    at, why = buckets.choose_bucket_count(found, worth=0.001)
    assert at == 2 and "last one tried" in why
    assert buckets.choose_bucket_count(found, requested=1)[0] == 0
    with pytest.raises(InputError, match="allow 1 to 3"):
        buckets.choose_bucket_count(found, requested=4)


def test_profiles_tell_the_batches_of_their_bucket() -> None:
    found = traffic({(1, 8): 10, (4, 8): 5, (2, 30): 9, (6, 30): 1, (1, 64): 1})
    made = buckets.bucket_profiles(found, (8, 32, 64), TrafficModel())
    # 4 members come 5 times: 20 rows against 10. What fits a longer bucket (6 members of 30) fits a shorter one.
    assert [buckets.profile_text(p) for p in made] == [
        "batch=1:4:6,length=1:8:8",
        "batch=1:2:6,length=9:32:32",
        "batch=1:1:1,length=33:64:64",
    ]
    dims = {"batch": Dim("batch"), "length": Dim("length", max=64)}
    assert [parse_profile(buckets.profile_text(p), dims) for p in made] == list(made)
    assert all(p["batch"].max == 16 for p in buckets.bucket_profiles(found, (8, 64), TrafficModel(), 16))
    with pytest.raises(InputError, match="below the 6 members"):
        buckets.bucket_profiles(found, (64,), TrafficModel(), 4)
    with pytest.raises(RecipeError, match="largest length this model takes is 50"):
        buckets.bucket_profiles(found, (64,), TrafficModel(longest=50))
    assert buckets.profile_text(buckets.bucket_profiles(found, (64,), TrafficModel("frames", None))[0]) == "frames=1:64:64"


def test_impossible_numbers_are_refused() -> None:
    found = traffic({(1, 30): 1})
    for arguments in ((0, 8), (3, 0)):
        with pytest.raises(InputError, match="whole numbers from 1 on"):
            buckets.plan_buckets(found, *arguments)
    with pytest.raises(InputError, match="to end at 20, and a request has 30 tokens"):
        buckets.plan_buckets(found, 1, 8, None, 20)
