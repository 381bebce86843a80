"""Batches: every sequence once an epoch, resumable anywhere, the same for any number of processes."""

import itertools
import subprocess
import sys
import threading
from collections import Counter

import numpy as np
import pytest
from letters import data, make_prepared

from mom_jax.fields import ConfigError
from train.data.pipeline import TrainingData, validation_batches

LENGTH = 5


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """118 tokens: 23 windows of 5 and a rest of 3."""
    return make_prepared(tmp_path_factory.mktemp("data"), 118)


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    """Three parts of 118 tokens to one of 50."""
    return make_prepared(tmp_path_factory.mktemp("mixture"), 118, 50, weights=(0.75, 0.25))


def take(prepared, count, *, examples_seen=0, process_index=0, process_count=1, name="tokens", **changes) -> np.ndarray:
    """The first `count` batches, [count, rows, length]."""
    batches = TrainingData(prepared, data(**changes)).batches(
        examples_seen=examples_seen, process_index=process_index, process_count=process_count
    )
    return np.stack([batch[name] for batch in itertools.islice(batches, count)])


def windows(prepared, source=0) -> np.ndarray:
    tokens = prepared.train[source].tokens
    count = len(tokens) // LENGTH
    return np.array(tokens[: count * LENGTH], np.int32).reshape(count, LENGTH)


def numbers(prepared, examples: np.ndarray, source=0) -> list[int]:
    """Which windows `examples` [..., length] are."""
    known = {tuple(window): i for i, window in enumerate(windows(prepared, source).tolist())}
    return [known[tuple(example)] for example in examples.reshape(-1, LENGTH).tolist()]


def test_the_cache_of_these_tests(prepared):
    [cache] = prepared.train
    assert (cache.num_tokens, cache.num_documents) == (118, 17)
    assert len({tuple(window) for window in windows(prepared).tolist()}) == 23
    [line] = TrainingData(prepared, data()).describe()
    assert line == "0: 118 tokens in 23 sequences of 5, 3 left over"


def test_shapes_and_types(prepared):
    batches = take(prepared, 3)
    assert batches.dtype == np.int32
    assert batches.shape == (3, 4, LENGTH)


def test_every_window_exactly_once_per_epoch(prepared):
    order = numbers(prepared, take(prepared, 23))  # 92 examples: 4 epochs, whose ends fall inside batches.
    for epoch in range(4):
        assert sorted(order[epoch * 23 : (epoch + 1) * 23]) == list(range(23))


def test_epochs_and_seeds_differ_in_order(prepared):
    orders = set()
    for seed in range(5):
        order = numbers(prepared, take(prepared, 23, seed=seed))
        orders |= {tuple(order[epoch * 23 : (epoch + 1) * 23]) for epoch in range(4)}
    assert len(orders) == 20
    assert tuple(range(23)) not in orders


def test_the_order_never_changes(prepared):
    """A run that is resumed with another release must go on where it was: this order is a promise."""
    order = numbers(prepared, take(prepared, 12, seed=7))
    assert order[:12] == [3, 8, 11, 22, 16, 4, 9, 5, 15, 10, 19, 18]
    assert order[23:35] == [19, 0, 15, 21, 5, 8, 1, 10, 9, 6, 12, 13]


def test_resuming_at_any_example_gives_the_same_stream(prepared, mixture):
    for source in (prepared, mixture):
        stream = take(source, 30).reshape(-1, LENGTH)
        for seen in range(0, 60, 7):
            resumed = take(source, 5, examples_seen=seen).reshape(-1, LENGTH)
            np.testing.assert_array_equal(resumed, stream[seen : seen + 20])


def test_resuming_with_another_batch_size_gives_the_same_stream(prepared):
    stream = take(prepared, 30).reshape(-1, LENGTH)
    resumed = take(prepared, 5, batch_size=6, examples_seen=20).reshape(-1, LENGTH)
    np.testing.assert_array_equal(resumed, stream[20:50])


def test_far_into_training_is_as_quick_as_the_start(prepared):
    far = 23 * 10**12
    assert sorted(numbers(prepared, take(prepared, 23, batch_size=1, examples_seen=far))) == list(range(23))


@pytest.mark.parametrize("packing", ["concatenate", "documents"])
@pytest.mark.parametrize("processes", [1, 2, 3, 6])
def test_any_number_of_processes_sees_the_same_batches(mixture, processes, packing):
    settings = {"batch_size": 6, "length": 9, "packing": packing, "examples_seen": 13}
    whole = take(mixture, 9, **settings)
    shares = [take(mixture, 9, **settings, process_index=i, process_count=processes) for i in range(processes)]
    assert all(share.shape == (9, 6 // processes, 9) for share in shares)
    np.testing.assert_array_equal(np.concatenate(shares, axis=1), whole)


@pytest.mark.parametrize(("packing", "left_over"), [("concatenate", 118 % 9), ("documents", 0)])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_every_token_once_an_epoch_at_any_number_of_processes(prepared, processes, packing, left_over):
    """Also where training goes on with another number of processes and another batch size in the middle."""
    training = TrainingData(prepared, data(packing=packing, length=9))
    count = len(training.sources[0])
    seen, used = 0, Counter()
    for batch_size, share in ((6, processes), (12, 3)):
        streams = [
            TrainingData(prepared, data(packing=packing, length=9, batch_size=batch_size)).batches(
                examples_seen=seen, process_index=i, process_count=share
            )
            for i in range(share)
        ]
        while seen < (6 if batch_size == 6 else count):
            for row in np.concatenate([next(stream)["tokens"] for stream in streams]):
                used.update(row[row > 0].tolist() if seen < count else [])
                seen += 1
    texts = np.array(prepared.train[0].tokens[: prepared.train[0].num_tokens - left_over])
    assert used == Counter(texts[texts > 0].tolist())


def test_packed_documents_keep_together(prepared):
    rows = {name: take(prepared, 3, packing="documents", length=16, name=name)[0] for name in ("tokens", "segment_ids")}
    positions = take(prepared, 3, packing="documents", length=16, name="positions")[0]
    for tokens, segments, places in zip(rows["tokens"], rows["segment_ids"], positions, strict=True):
        for segment in range(1, segments.max() + 1):
            own = tokens[segments == segment]
            assert own[-1] == 0
            assert np.all(np.diff(own[:-1]) == 1)
            np.testing.assert_array_equal(places[segments == segment], np.arange(len(own)))
        assert not tokens[segments == 0].any()
    [line] = TrainingData(prepared, data(packing="documents", length=16)).describe()
    assert "118 tokens of 17 documents" in line
    assert "0 longer documents are cut" in line


def test_a_mixture_by_its_weights(mixture):
    first, second = ({tuple(row) for row in windows(mixture, i).tolist()} for i in (0, 1))
    rows = [tuple(row) for row in take(mixture, 46).reshape(-1, LENGTH).tolist()]
    assert len(rows) == 184
    assert sum(row in first for row in rows) == 138
    assert all((row in first) != (row in second) for row in rows)
    for known, share in ((first, 0.75), (second, 0.25)):
        own = [row for row in rows if row in known]
        for epoch in range(len(own) // len(known)):
            assert set(own[epoch * len(known) : (epoch + 1) * len(known)]) == known
        assert sum(row in known for row in rows[:40]) == 40 * share  # evenly all the way
    assert TrainingData(mixture, data()).epochs(184) == {"0": pytest.approx(6.0), "1": pytest.approx(4.6)}


def test_a_batch_may_hold_several_epochs(prepared):
    order = numbers(prepared, take(prepared, 1, batch_size=46))
    assert sorted(order[:23]) == sorted(order[23:]) == list(range(23))


def test_batches_can_be_written_to(prepared):
    batches = TrainingData(prepared, data()).batches(examples_seen=0)
    next(batches)["tokens"][:] = 0
    np.testing.assert_array_equal(next(batches)["tokens"], take(prepared, 2)[1])


def test_a_closed_iterator_leaves_no_threads(prepared):
    before = set(threading.enumerate())
    batches = TrainingData(prepared, data()).batches(examples_seen=0)
    next(batches)
    started = set(threading.enumerate()) - before
    assert started
    batches.close()
    for thread in started:
        thread.join(10)
        assert not thread.is_alive()


def test_a_program_that_stops_reading_midway_ends_quietly(prepared):
    program = """
import sys
from train.config import DataConfig
from train.data.cache import TokenCache
from train.data.pipeline import TrainingData
from train.data.prepared import Prepared

caches = [(TokenCache.open(sys.argv[1], side),) for side in ("train", "validation")]
data = TrainingData(Prepared(None, ("all",), (1.0,), *caches), DataConfig(batch_size=4, length=5))
next(data.batches(examples_seen=0))
"""
    command = [sys.executable, "-W", "error", "-c", program, str(prepared.train[0].folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"length": 119}, r"^data\.length=119: .*118 tokens"),
        ({"process_count": 3}, r"^data\.batch_size=4: must be a multiple of the 3 processes"),
        ({"examples_seen": -1}, r"^examples_seen=-1: must be at least 0"),
        ({"process_index": 2, "process_count": 2}, r"^process_index=2: must be below 2"),
    ],
)
def test_what_cannot_be_is_refused_before_the_first_batch(prepared, changes, message):
    with pytest.raises(ConfigError, match=message):
        take(prepared, 1, **changes)


def damaged(prepared, tmp_path):
    """The same cache with one token that no vocabulary has."""
    import shutil

    from train.data.cache import TokenCache
    from train.data.prepared import Prepared

    folder = tmp_path / "damaged"
    shutil.copytree(prepared.train[0].folder, folder)
    tokens = np.memmap(folder / "train.bin", np.uint16, mode="r+")
    tokens[50] = 60_001
    tokens.flush()
    cache = TokenCache.open(folder, "train")
    return Prepared(prepared.tokenizer, ("all",), (1.0,), (cache,), (cache,))


@pytest.mark.parametrize("packing", ["concatenate", "documents"])
def test_a_token_outside_the_vocabulary_is_seen(prepared, tmp_path, packing):
    wrong = damaged(prepared, tmp_path)
    with pytest.raises(ConfigError, match=r"train\.bin' has the token 60001, the vocabulary has 60000; delete"):
        take(wrong, 6, packing=packing)
    with pytest.raises(ConfigError, match="has the checksum"):
        wrong.train[0].verify()
    prepared.train[0].verify()


def test_validation_reads_all_windows_in_order(prepared):
    batches = list(validation_batches(prepared, data()))
    assert len(batches) == 6
    for batch in batches:
        assert batch["tokens"].shape == batch["mask"].shape == (4, LENGTH)
        assert (batch["tokens"].dtype, batch["mask"].dtype) == (np.int32, np.bool_)
    tokens, mask = (np.concatenate([batch[name] for batch in batches]) for name in ("tokens", "mask"))
    np.testing.assert_array_equal(tokens[:23], windows(prepared))
    assert mask[:23].all()
    assert not mask[23:].any()


def test_limited_validation_is_spread_evenly(prepared):
    batches = list(validation_batches(prepared, data(), limit=2))
    assert all(batch["mask"].all() for batch in batches)
    chosen = numbers(prepared, np.stack([batch["tokens"] for batch in batches]))
    assert chosen == [0, 2, 5, 8, 11, 14, 17, 20]


def test_validation_of_a_mixture_by_its_weights(mixture):
    tokens = np.concatenate([batch["tokens"] for batch in validation_batches(mixture, data(), limit=2)])
    assert len(numbers(mixture, tokens[:6], source=0)) == 6
    assert len(numbers(mixture, tokens[6:], source=1)) == 2
    everything = np.concatenate([batch["tokens"] for batch in validation_batches(mixture, data())])
    assert len(everything) == 36  # 23 and 10 windows, filled up


def test_validation_of_packed_documents_says_what_is_padding(prepared):
    [batch] = validation_batches(prepared, data(packing="documents", length=64))
    assert set(batch) == {"tokens", "segment_ids", "positions"}
    assert not batch["segment_ids"][2:].any()
    assert (batch["segment_ids"] > 0).sum() == 118


def test_a_limit_beyond_the_windows_reads_each_once(prepared):
    everything, limited = (list(validation_batches(prepared, data(), limit=limit)) for limit in (0, 100))
    for a, b in zip(everything, limited, strict=True):
        np.testing.assert_array_equal(a["tokens"], b["tokens"])


def test_validation_needs_a_window(prepared):
    with pytest.raises(ConfigError, match=r"^data\.length=200: "):
        validation_batches(prepared, data(length=200))
    assert len(list(validation_batches(prepared, data(length=118)))) == 1


def test_one_window_is_enough(tmp_path):
    prepared = make_prepared(tmp_path, LENGTH)
    expected = np.array(prepared.train[0].tokens, np.int32)
    np.testing.assert_array_equal(take(prepared, 2), np.broadcast_to(expected, (2, 4, LENGTH)))
