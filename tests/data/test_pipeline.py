"""Batches: every window once an epoch, resumable anywhere, the same for any number of processes."""

import itertools
import subprocess
import sys
import threading

import numpy as np
import pytest

from mom_jax.fields import ConfigError
from train.data.cache import TokenCache, build
from train.data.pipeline import num_windows, train_batches, validation_batches
from train.data.sources import Document

LENGTH = 5


class Letters:
    """Every character is its own token; documents end with 0."""

    vocab_size = 60_000
    eos_id = 0
    fingerprint = "letters"

    def encode(self, text: str) -> list[int]:
        return [ord(character) for character in text]


def make_cache(folder, tokens: int) -> TokenCache:
    """A cache of `tokens` different tokens in documents of 7 and a rest."""
    text = "".join(map(chr, range(1, tokens + 1)))
    documents = [Document(str(i), text[i : min(i + 6, tokens - 1)]) for i in range(0, tokens, 7)]
    return build(folder, documents, Letters(), {})


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> TokenCache:
    """118 tokens: 23 windows of 5 and a rest of 3."""
    return make_cache(tmp_path_factory.mktemp("data") / "cache", 118)


def take(cache: TokenCache, count: int, **changes: int) -> np.ndarray:
    """The first `count` batches, [count, rows, length]."""
    settings = {"batch_size": 4, "length": LENGTH, "seed": 0, "examples_seen": 0} | changes
    return np.stack(list(itertools.islice(train_batches(cache, **settings), count)))


def windows(cache: TokenCache) -> np.ndarray:
    return np.array(cache.tokens[: 23 * LENGTH], np.int32).reshape(23, LENGTH)


def numbers(cache: TokenCache, examples: np.ndarray) -> list[int]:
    """Which windows `examples` [..., length] are."""
    known = {tuple(window): i for i, window in enumerate(windows(cache).tolist())}
    return [known[tuple(example)] for example in examples.reshape(-1, LENGTH).tolist()]


def test_the_cache_of_these_tests(cache):
    assert (cache.num_tokens, num_windows(cache, LENGTH), cache.num_documents) == (118, 23, 17)
    assert len({tuple(window) for window in windows(cache).tolist()}) == 23


def test_shapes_and_types(cache):
    batches = take(cache, 3)
    assert batches.dtype == np.int32
    assert batches.shape == (3, 4, LENGTH)


def test_every_window_exactly_once_per_epoch(cache):
    order = numbers(cache, take(cache, 23))  # 92 examples: 4 epochs, whose ends fall inside batches.
    for epoch in range(4):
        assert sorted(order[epoch * 23 : (epoch + 1) * 23]) == list(range(23))


def test_epochs_and_seeds_differ_in_order(cache):
    orders = set()
    for seed in range(5):
        order = numbers(cache, take(cache, 23, seed=seed))
        orders |= {tuple(order[epoch * 23 : (epoch + 1) * 23]) for epoch in range(4)}
    assert len(orders) == 20
    assert tuple(range(23)) not in orders


def test_the_order_never_changes(cache):
    """A run that is resumed with another release must go on where it was: this order is a promise."""
    order = numbers(cache, take(cache, 12, seed=7))
    assert order[:12] == [3, 8, 11, 22, 16, 4, 9, 5, 15, 10, 19, 18]
    assert order[23:35] == [19, 0, 15, 21, 5, 8, 1, 10, 9, 6, 12, 13]


def test_resuming_at_any_example_gives_the_same_stream(cache):
    stream = take(cache, 30).reshape(-1, LENGTH)
    for seen in range(60):
        resumed = take(cache, 5, examples_seen=seen).reshape(-1, LENGTH)
        np.testing.assert_array_equal(resumed, stream[seen : seen + 20])


def test_resuming_with_another_batch_size_gives_the_same_stream(cache):
    stream = take(cache, 30).reshape(-1, LENGTH)
    resumed = take(cache, 5, batch_size=6, examples_seen=20).reshape(-1, LENGTH)
    np.testing.assert_array_equal(resumed, stream[20:50])


def test_far_into_training_is_as_quick_as_the_start(cache):
    far = 23 * 10**12
    assert sorted(numbers(cache, take(cache, 23, batch_size=1, examples_seen=far))) == list(range(23))


@pytest.mark.parametrize("processes", [1, 2, 3, 6])
def test_any_number_of_processes_sees_the_same_batches(cache, processes):
    whole = take(cache, 9, batch_size=6, examples_seen=13)
    shares = [
        take(cache, 9, batch_size=6, examples_seen=13, process_index=i, process_count=processes)
        for i in range(processes)
    ]
    assert all(share.shape == (9, 6 // processes, LENGTH) for share in shares)
    np.testing.assert_array_equal(np.concatenate(shares, axis=1), whole)


def test_a_batch_may_hold_several_epochs(cache):
    order = numbers(cache, take(cache, 1, batch_size=46))
    assert sorted(order[:23]) == sorted(order[23:]) == list(range(23))


def test_batches_can_be_written_to(cache):
    batches = train_batches(cache, batch_size=4, length=LENGTH, seed=0, examples_seen=0)
    next(batches)[:] = 0
    np.testing.assert_array_equal(next(batches), take(cache, 2)[1])


def test_a_closed_iterator_leaves_no_threads(cache):
    before = set(threading.enumerate())
    batches = train_batches(cache, batch_size=4, length=LENGTH, seed=0, examples_seen=0)
    next(batches)
    started = set(threading.enumerate()) - before
    assert started
    batches.close()
    for thread in started:
        thread.join(10)
        assert not thread.is_alive()


def test_a_program_that_stops_reading_midway_ends_quietly(cache):
    program = """
import sys
from train.data.cache import TokenCache
from train.data.pipeline import train_batches

batches = train_batches(TokenCache.open(sys.argv[1]), batch_size=4, length=5, seed=0, examples_seen=0)
next(batches)
"""
    command = [sys.executable, "-W", "error", "-c", program, str(cache.folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"length": 119}, r"^data\.length=119: .*118 tokens"),
        ({"process_count": 3}, r"^data\.batch_size=4: must be a multiple of the 3 processes"),
        ({"seed": -1}, r"^data\.seed=-1: must be at least 0"),
        ({"examples_seen": -1}, r"^examples_seen=-1: must be at least 0"),
        ({"process_index": 2, "process_count": 2}, r"^process_index=2: must be below 2"),
    ],
)
def test_what_cannot_be_is_refused_before_the_first_batch(cache, changes, message):
    settings = {"batch_size": 4, "length": LENGTH, "seed": 0, "examples_seen": 0} | changes
    with pytest.raises(ConfigError, match=message):
        train_batches(cache, **settings)


def test_validation_reads_all_windows_in_order(cache):
    batches = list(validation_batches(cache, batch_size=4, length=LENGTH))
    assert len(batches) == 6
    for tokens, weights in batches:
        assert tokens.shape == weights.shape == (4, LENGTH)
        assert (tokens.dtype, weights.dtype) == (np.int32, np.bool_)
    tokens, weights = (np.concatenate(part) for part in zip(*batches, strict=True))
    np.testing.assert_array_equal(tokens[:23], windows(cache))
    assert weights[:23].all()
    assert not weights[23:].any()


def test_limited_validation_is_spread_evenly(cache):
    batches = list(validation_batches(cache, batch_size=4, length=LENGTH, limit=2))
    assert all(weights.all() for _, weights in batches)
    chosen = numbers(cache, np.stack([tokens for tokens, _ in batches]))
    assert chosen == [0, 2, 5, 8, 11, 14, 17, 20]


def test_a_limit_beyond_the_windows_reads_each_once(cache):
    everything = list(validation_batches(cache, batch_size=4, length=LENGTH))
    limited = list(validation_batches(cache, batch_size=4, length=LENGTH, limit=100))
    np.testing.assert_array_equal(np.array(limited), np.array(everything))


def test_validation_needs_a_window(cache):
    with pytest.raises(ConfigError, match=r"^data\.length=200: "):
        validation_batches(cache, batch_size=4, length=200)
    assert len(list(validation_batches(cache, batch_size=4, length=118))) == 1


def test_one_window_is_enough(tmp_path):
    cache = make_cache(tmp_path / "cache", LENGTH)
    batches = take(cache, 2)
    np.testing.assert_array_equal(batches, np.broadcast_to(np.array(cache.tokens, np.int32), (2, 4, LENGTH)))
