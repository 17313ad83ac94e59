"""The order of rows, shards, and position in the data."""

from itertools import chain, islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naming import naming

from align.data.sampler import BatchLoader, BatchOrder, ResumableLoader


class Echo:
    """A dataset that gives back the row numbers it was asked for."""

    def __getitem__(self, rows):
        return rows


def passes(loader, count):
    return [batch.tolist() for _ in range(count) for batch in loader]


orders = st.builds(
    dict,
    rows=st.integers(1, 60),
    batch_size=st.integers(1, 7),
    seed=st.integers(0, 3) | st.none(),
    ranks=st.integers(1, 4),
    lengths=st.booleans(),
)


def shards(case, number):
    widths = np.arange(case["rows"])[::-1] if case["lengths"] else None
    common = {"rows": case["rows"], "batch_size": case["batch_size"], "seed": case["seed"], "ranks": case["ranks"]}
    return [BatchOrder(**common, rank=rank, widths=widths).batches(number) for rank in range(case["ranks"])]


@settings(deadline=None)
@given(orders, st.integers(0, 5))
def test_ranks_share_out_a_pass(case, number):
    """Together the ranks see every row once; shuffled, fewer than ``ranks`` rows are left out; batches are as many and
    as large on every rank, and as many as ``len`` says."""
    parts = shards(case, number)
    assert {part.shape for part in parts} == {
        (len(BatchOrder(case["rows"], case["batch_size"], case["seed"], case["ranks"])), case["batch_size"])
    }
    seen = np.concatenate([part.ravel() for part in parts])
    seen = np.sort(seen[seen >= 0])
    assert len(np.unique(seen)) == len(seen)
    left_out = 0 if case["seed"] is None else case["rows"] % case["ranks"]
    assert len(seen) == case["rows"] - left_out
    if case["seed"] is not None:  # the same number of rows on every rank
        assert len({int((part >= 0).sum()) for part in parts}) == 1


@settings(deadline=None)
@given(orders, st.integers(0, 5))
def test_order_is_a_pure_function_of_seed_and_pass(case, number):
    """Asked twice, with other passes in between, the answer is the same; global random state plays no part."""
    np.random.seed(1)
    before = np.random.get_state()[1].copy()
    first = shards(case, number)
    np.random.seed(2)
    shards(case, number + 1)
    again = shards(case, number)
    assert all((left == right).all() for left, right in zip(first, again, strict=True))
    np.random.seed(1)
    assert (np.random.get_state()[1] == before).all()


def test_passes_and_seeds_differ():
    """100 rows: two permutations agree with probability 1/100!."""
    order = BatchOrder(100, 10, seed=0)
    assert (order.batches(0) != order.batches(1)).any()
    assert (order.batches(0) != BatchOrder(100, 10, seed=1).batches(0)).any()


def test_the_product_of_batch_size_and_ranks_decides():
    """2 ranks with 4 rows see in each step what one rank with 8 sees."""
    whole = BatchOrder(40, 8, seed=3).batches(1)
    halves = [BatchOrder(40, 4, seed=3, ranks=2, rank=rank).batches(1) for rank in (0, 1)]
    assert (np.sort(np.concatenate(halves, axis=1)) == np.sort(whole)).all()


def test_rows_of_similar_length_share_a_batch():
    """100 rows of lengths 1-100, batches of 10, all within one chunk: sorted, so each batch spans 10 lengths."""
    widths = np.random.default_rng(0).permutation(100) + 1
    table = BatchOrder(100, 10, seed=0, widths=widths).batches(0)
    spans = widths[table].max(axis=1) - widths[table].min(axis=1)
    assert (spans == 9).all()
    assert (np.diff(widths[table].min(axis=1)) < 0).any()  # short and long batches alternate


@pytest.mark.parametrize("workers", [0, 2])
def test_place_counts_what_was_delivered(workers):
    """Stopped after 3 of 5 batches a loader, fresh in a new process, gives the other 2 and then the next pass; what
    workers made ahead is not counted."""
    order = BatchOrder(20, 4, seed=7)
    expected = order.batches(0).tolist() + order.batches(1).tolist()
    loader = ResumableLoader(Echo(), order, workers=workers)
    batches = iter(loader)
    got = [next(batches).tolist() for _ in range(3)]
    state = loader.state_dict()
    assert (state["pass"], state["position"]) == (0, 3)
    resumed = ResumableLoader(Echo(), order, workers=workers)
    resumed.load_state_dict(state)
    assert got + passes(resumed, 1) == expected[:8]
    assert (resumed.state_dict()["pass"], resumed.state_dict()["position"]) == (1, 3)


def test_an_iterator_nobody_read_moves_nothing():
    """Lightning makes iterators it may throw away."""
    loader = ResumableLoader(Echo(), BatchOrder(20, 4, seed=7))
    iter(loader)
    assert loader.state_dict()["position"] == 0
    assert passes(loader, 2) == loader.order.batches(0).tolist() + loader.order.batches(1).tolist()


def test_fixed_order_starts_over():
    """Validation: rows in order, each time; 5 rows in batches of 2 leave one place empty."""
    loader = BatchLoader(Echo(), BatchOrder(5, 2))
    assert passes(loader, 2) == [[0, 1], [2, 3], [4, -1]] * 2
    assert not hasattr(loader, "state_dict")


def test_a_place_counted_otherwise_is_refused():
    """Twice the batch size: position 3 would be other rows."""
    state = ResumableLoader(Echo(), BatchOrder(20, 4, seed=7)).state_dict()
    with pytest.raises(ValueError, match=naming("batch_size", "ranks", 4, 8)):
        ResumableLoader(Echo(), BatchOrder(20, 8, seed=7)).load_state_dict(state)


@pytest.mark.parametrize("widths", [None, np.arange(64) % 17], ids=["as they come", "by length"])
@pytest.mark.parametrize(("before", "after"), [((1, 8), (2, 4)), ((2, 4), (1, 8)), ((2, 4), (4, 2)), ((4, 2), (1, 8))])
def test_another_number_of_ranks_goes_on_at_the_right_rows(before, after, widths):
    """64 rows in batches of 8 over all ranks, two passes and a bit: stopped after 5 and after 11 batches."""

    def deliver(ranks, size, batches, places=None):
        """The rows of each batch, all ranks together, and rank 0's place."""
        loaders = [
            ResumableLoader(Echo(), BatchOrder(rows=64, batch_size=size, seed=3, ranks=ranks, rank=rank, widths=widths))
            for rank in range(ranks)
        ]
        for loader in loaders:
            if places is not None:
                loader.load_state_dict(places)
        parts = [list(islice(chain.from_iterable(loader for _ in range(9)), batches)) for loader in loaders]
        return [sorted(map(int, np.concatenate(batch))) for batch in zip(*parts, strict=True)], loaders[0].state_dict()

    whole, _ = deliver(1, 8, 20)
    assert sorted(row for batch in whole[:8] for row in batch) == list(range(64))
    for stopped in (5, 11):
        first, place = deliver(*before, stopped)
        rest, _ = deliver(*after, 20 - stopped, place)
        assert first + rest == whole


def test_a_product_that_does_not_fit_is_told_with_the_cure():
    place = ResumableLoader(Echo(), BatchOrder(rows=64, batch_size=8, seed=3)).state_dict()
    with pytest.raises(ValueError, match=naming("ranks", 8, 16, 2, "data.batch_size", 4)):
        ResumableLoader(Echo(), BatchOrder(rows=64, batch_size=8, seed=3, ranks=2)).load_state_dict(place)
    with pytest.raises(ValueError, match=naming("batch_size", "ranks", 8, 24, 3)):
        ResumableLoader(Echo(), BatchOrder(rows=64, batch_size=8, seed=3, ranks=3)).load_state_dict(place)


def test_iterating_leaves_torch_random_state_alone():
    """torch's DataLoader draws a worker seed from the global generator unless it gets one of its own."""
    import torch

    before = torch.get_rng_state()
    passes(ResumableLoader(Echo(), BatchOrder(20, 4, seed=7)), 1)
    assert torch.equal(before, torch.get_rng_state())
