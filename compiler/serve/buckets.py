"""Length buckets for real requests: the best bounds for every number of buckets, and the optimisation profiles made of them.

The objective, exactly: a request of b members whose longest has l tokens is padded to the smallest bound B >= l and computes
b * B tokens; the bounds minimise the sum of that over all requests. They are multiples of `multiple` (cut to the model's longest
length), and the last one holds the longest request seen. That is what a runner computes that pads to buckets; an engine that is
given the unpadded shape computes less, with kernels tuned for the bound.

The smallest bound of each request is the only thing that matters, so a choice of K bounds is a partition of the sorted lengths
into K runs, each of which costs (its last bound) * (its rows). Dynamic programming over the last run finds the best partition,
not a good one: best[k][j] = min over i < j of best[k - 1][i] + bound[j] * rows(i + 1 .. j). In integers: nothing is rounded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..core import Dim, InputError, Profile, Range, complete_profile
from .traffic import Traffic, TrafficModel

MIN_SAVING = 0.05  # of the tokens; a profile more costs about as much of the plan's bytes, and its share of the build
NO_LIMIT = 2**31 - 1
SEVERAL_PROFILES = (
    "each profile is compiled separately: a second one added 7 % to the bytes of a TensorRT-RTX plan",
    "Triton's TensorRT backend uses the first profile alone unless config.pbtxt lists them all: "
    "instance_group [{{ profile: [{listed}] }}]",
)


@dataclasses.dataclass(frozen=True)
class BucketBounds:
    """The best bounds for one number of buckets, ascending, and the tokens that all requests compute with them."""

    bounds: tuple[int, ...]
    computed: int


@dataclasses.dataclass(frozen=True)
class BucketPlan:
    """The best choice for 1, 2, ... buckets; `tokens` are those without padding, `in_batches` the padding no bucket saves."""

    choices: tuple[BucketBounds, ...]
    tokens: int
    in_batches: int
    multiple: int

    def waste(self, choice: BucketBounds) -> float:
        """The share of the computed tokens that is padding."""
        return 1 - self.tokens / choice.computed

    def saving(self, at: int) -> float | None:
        """What one bucket more than choices[at] saves, as a share of the tokens that choices[at] computes; None at the end."""
        if at + 1 == len(self.choices):
            return None
        return 1 - self.choices[at + 1].computed / self.choices[at].computed


def plan_buckets(
    traffic: Traffic, max_buckets: int, multiple: int = 1, limit: int | None = None, last_bound: int | None = None
) -> BucketPlan:
    """The best bounds for 1 to `max_buckets` buckets; fewer where there are not so many different bounds.

    `multiple`: bounds are multiples of it, or `limit`, the longest that the model takes. `last_bound`: the last one,
    also where no request is so long. Raises InputError for a number below 1 and a `last_bound` below a request.
    """
    if max_buckets < 1 or multiple < 1:
        raise InputError(f"{max_buckets} buckets, multiples of {multiple}: both must be whole numbers from 1 on")
    top = min(limit or last_bound or NO_LIMIT, last_bound or NO_LIMIT)
    if top < traffic.longest[-1]:
        raise InputError(f"the last bucket is to end at {top}, and a request has {traffic.longest[-1]} tokens")
    capped = np.minimum(-(-traffic.longest // multiple) * multiple, top)
    bounds, group = np.unique(np.append(capped, last_bound or capped[-1]), return_inverse=True)
    rows = np.zeros(len(bounds), np.int64)
    np.add.at(rows, group[:-1], traffic.rows)
    choices = tuple(BucketBounds(found, _computed(found, bounds, rows)) for found in best_partitions(bounds, rows, max_buckets))
    return BucketPlan(choices, int(traffic.tokens.sum()), traffic.padded_in_batches, multiple)


def _computed(chosen: Sequence[int], bounds: np.ndarray, rows: np.ndarray) -> int:
    """Counted again from the bounds: it does not rest on the sums of the search."""
    picked = np.asarray(chosen)[np.searchsorted(chosen, bounds)]
    return int((picked * rows).sum())


def best_partitions(bounds: np.ndarray, rows: np.ndarray, max_buckets: int) -> list[tuple[int, ...]]:
    """The best bounds for 1, 2, ... min(max_buckets, n) buckets. int64 [n] each: bounds ascending, rows from 0 on.

    O(max_buckets * n^2) time and O(max_buckets * n) memory.
    """
    rows_up_to = np.cumsum(rows)
    best = bounds * rows_up_to
    parents: list[np.ndarray] = [np.full(len(bounds), -1)]
    found = [_bounds_of(bounds, parents)]
    for _ in range(1, min(max_buckets, len(bounds))):
        best, parent = _one_more(best, bounds, rows_up_to)
        parents.append(parent)
        found.append(_bounds_of(bounds, parents))
    return found


def _one_more(best: np.ndarray, bounds: np.ndarray, rows_up_to: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(cost, where the last bucket begins: after this index) of the first j lengths with one bucket more than in `best`."""
    cost, parent = best.copy(), np.full(len(bounds), -1)
    for j in range(1, len(bounds)):
        found = best[:j] - bounds[j] * rows_up_to[:j]
        i = int(found.argmin())
        cost[j], parent[j] = found[i] + bounds[j] * rows_up_to[j], i
    return cost, parent


def _bounds_of(bounds: np.ndarray, parents: Sequence[np.ndarray]) -> tuple[int, ...]:
    chosen: list[int] = []
    index = len(bounds) - 1
    for parent in reversed(parents):
        if index < 0:
            break
        chosen.append(int(bounds[index]))
        index = int(parent[index])
    return tuple(reversed(chosen))


def choose_bucket_count(found: BucketPlan, requested: int | None = None, worth: float = MIN_SAVING) -> tuple[int, str]:
    """(index of a choice, why): the fewest buckets of which one more saves less than `worth` of the tokens computed.

    InputError for `requested` buckets where there are not so many different bounds.
    """
    if requested is not None:
        if not 1 <= requested <= len(found.choices):
            raise InputError(f"{requested} buckets requested; these requests allow 1 to {len(found.choices)}")
        return requested - 1, "as requested"
    for at in range(len(found.choices)):
        saving = found.saving(at)
        if saving is not None and saving < worth:
            return at, f"one bucket more saves {saving:.1%} of the tokens, under {worth:.1%}"
    last = len(found.choices) - 1
    return last, f"each bucket saves {worth:.1%} of the tokens or more, the last one tried included"


def bucket_profiles(
    traffic: Traffic, bounds: Sequence[int], model: TrafficModel, max_batch: int | None = None
) -> tuple[Profile, ...]:
    """An optimisation profile for each bucket.

    length: from behind the bucket before to the bound; opt is the bound, which every padded request has. batch: opt is the size
    whose requests compute the most tokens in the bucket; max is the largest seen in this bucket or a longer one, since what
    fits a longer bucket fits a shorter one, or `max_batch`. Raises RecipeError for a range that the model does not take.
    """
    profiles: list[Profile] = []
    low = model.shortest
    for bound in bounds:
        here = (traffic.longest >= low) & (traffic.longest <= bound)
        given = {model.length: Range(low, bound, bound)}
        if model.batch is not None:
            given[model.batch] = _batches(traffic, here, traffic.longest >= low, model, max_batch)
        profiles.append(complete_profile(given, _dims(model)))
        low = bound + 1
    return tuple(profiles)


def _batches(traffic: Traffic, here: np.ndarray, onward: np.ndarray, model: TrafficModel, max_batch: int | None) -> Range:
    ends = traffic.longest == traffic.longest[-1]  # stand in for a last bucket beyond all requests
    here, onward = (chosen if chosen.any() else ends for chosen in (here, onward))
    rows = np.bincount(traffic.batch[here], traffic.rows[here])
    seen = int(traffic.batch[onward].max())
    if max_batch is not None and max_batch < seen:
        raise InputError(f"--max-batch {max_batch} is below the {seen} members of a request in the file")
    opt = max(int(rows.argmax()), model.smallest_batch)
    return Range(model.smallest_batch, opt, max(max_batch or seen, opt))


def _dims(model: TrafficModel) -> Mapping[str, Dim]:
    dims = {model.batch: Dim(model.batch, model.smallest_batch, model.largest_batch)} if model.batch else {}
    return dims | {model.length: Dim(model.length, model.shortest, model.longest)}


def profile_text(profile: Profile) -> str:
    """A profile as `--profile` and a recipe take it."""
    return ",".join(f"{name}={sizes}" for name, sizes in profile.items())


def profile_notes(traffic: Traffic, profiles: Sequence[Profile], model: TrafficModel) -> tuple[str, ...]:
    """What a user of the profiles should know."""
    largest = ", ".join(f"{name} {max(p[name].max for p in profiles)}" for name in profiles[0])
    found = [*traffic.notes, f"a TensorRT engine refuses requests beyond {largest}; raise that with --longest and --max-batch"]
    if len(profiles) > 1:
        listed = ", ".join(f'"{i}"' for i in range(len(profiles)))
        found += [SEVERAL_PROFILES[0], SEVERAL_PROFILES[1].format(listed=listed)]
    return tuple(found)


def to_json(traffic: Traffic, found: BucketPlan, chosen: int, why: str, profiles: Sequence[Profile]) -> dict[str, Any]:
    return {
        "requests": int(traffic.count.sum()),
        "rows": int(traffic.rows.sum()),
        "tokens": found.tokens,
        "padding_inside_batches": found.in_batches,
        "multiple": found.multiple,
        "buckets": [
            {"bounds": list(c.bounds), "computed": c.computed, "wasted": c.computed - found.tokens, "waste": found.waste(c)}
            for c in found.choices
        ],
        "chosen": chosen + 1,
        "why": why,
        "profiles": [profile_text(profile) for profile in profiles],
    }
