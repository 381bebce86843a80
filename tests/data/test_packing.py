"""Packing: every token in one window, documents apart, windows as full as best fit makes them."""

import itertools

import numpy as np
import pytest

from mom_jax.fields import ConfigError
from train.data.packing import pack


def starts_of(lengths):
    return np.concatenate([[0], np.cumsum(np.asarray(lengths, np.int64))])


def log_normal(seed, count=300, mean=2.0):
    return np.maximum(1, np.random.default_rng(seed).lognormal(mean, 1.0, count)).astype(np.int64)


CASES = {
    "one token": ([1], 8),
    "of one token each": ([1] * 37, 8),
    "all alike": ([3] * 20, 8),
    "as long as a window": ([8] * 5, 8),
    "longer than a window": ([9, 8, 16, 17, 3, 40], 8),
    "windows of one token": ([1, 3, 2], 1),
    "short": (log_normal(0, mean=1.0), 64),
    "middling": (log_normal(1), 64),
    "long": (log_normal(2, mean=4.0), 64),
    "wide": (log_normal(3), 500),
    "decreasing": (np.arange(60, 0, -1), 64),
    "uniform": (np.random.default_rng(4).integers(1, 65, 400), 64),
}
EACH = pytest.mark.parametrize("name", CASES)


def pieces_of(lengths, length):
    """[(start, length)] of the documents' pieces, by a loop."""
    found, start = [], 0
    for whole in lengths:
        found += [(start + at, min(length, whole - at)) for at in range(0, whole, length)]
        start += whole
    return found


def first_fit(lengths, length):
    """How many windows it takes to put every piece into the first one that has room."""
    rooms = []
    for size in lengths:
        at = next((i for i, room in enumerate(rooms) if room >= size), len(rooms))
        rooms[at:] = rooms[at:] or [length]
        rooms[at] -= size
    return len(rooms)


def best_fit_decreasing(lengths, length):
    """The rooms that are left by putting each piece, the longest first, where it leaves the least."""
    rooms = []
    for size in sorted(lengths, reverse=True):
        fits = [room for room in rooms if room >= size]
        if fits:
            rooms.remove(min(fits))
        rooms.append((min(fits) if fits else length) - size)
    return sorted(rooms)


@EACH
def test_every_piece_is_in_one_window(name):
    lengths, length = CASES[name]
    packing = pack(starts_of(lengths), length)
    want = pieces_of(lengths, length)
    got = list(zip(packing.piece_start.tolist(), packing.piece_length.tolist(), strict=True))
    assert sorted(got) == want
    first = packing.window_first
    assert (first[0], first[-1]) == (0, len(got))
    windows = [got[a:b] for a, b in itertools.pairwise(first)]
    for window in windows:
        assert 0 < sum(size for _, size in window) <= length
        assert window == sorted(window)
    assert windows == sorted(windows)
    assert packing.num_windows == len(windows)
    assert packing.tokens == sum(lengths)
    assert packing.cut == sum(whole > length for whole in lengths)
    assert packing.padding == pytest.approx(1 - sum(lengths) / (len(windows) * length))
    assert (packing.window_first.dtype, packing.piece_start.dtype) == (np.int64, np.int64)
    assert packing.piece_length.dtype == np.int32


@EACH
def test_windows_are_filled_by_best_fit(name):
    lengths, length = CASES[name]
    packing = pack(starts_of(lengths), length)
    sizes = [size for _, size in pieces_of(lengths, length)]
    used = np.add.reduceat(packing.piece_length, packing.window_first[:-1])
    assert sorted((length - used).tolist()) == best_fit_decreasing(sizes, length)
    assert packing.num_windows <= first_fit(sizes, length)


@EACH
def test_a_window_says_where_its_documents_are(name):
    lengths, length = CASES[name]
    starts = starts_of(lengths)
    packing = pack(starts, length)
    tokens = np.arange(1, starts[-1] + 1, dtype=np.uint16)  # tells places apart; none is 0, as padding is
    seen = []
    for index in range(packing.num_windows):
        window = packing.window(index, tokens)
        assert list(window) == ["tokens", "segment_ids", "positions"]
        assert all(row.dtype == np.int32 and row.shape == (length,) for row in window.values())
        at, pieces = 0, range(packing.window_first[index], packing.window_first[index + 1])
        for segment, piece in enumerate(pieces, start=1):
            for position in range(packing.piece_length[piece]):
                token = packing.piece_start[piece] + position + 1
                assert [row[at] for row in window.values()] == [token, segment, position]
                seen.append(token)
                at += 1
        assert not any(row[at:].any() for row in window.values())
    assert sorted(seen) == tokens.tolist()


def test_a_document_that_fits_is_one_segment():
    """No segment has tokens of two documents, and only documents longer than a window are in several."""
    lengths, length = CASES["long"]
    starts = starts_of(lengths)
    packing = pack(starts, length)
    document = np.searchsorted(starts, packing.piece_start, "right") - 1
    assert (packing.piece_start + packing.piece_length <= starts[document + 1]).all()
    assert (np.bincount(document) == -(-np.asarray(lengths) // length)).all()
    assert packing.cut > 0


def test_the_same_documents_give_the_same_windows():
    one, other = (pack(starts_of(CASES["middling"][0]), 64) for _ in range(2))
    for name in ("window_first", "piece_start", "piece_length"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_token_ids_of_32_bits_and_caches_that_begin_later():
    packing = pack(np.array([10, 13, 15]), 8)
    tokens = np.arange(20, dtype=np.uint32) + 70_000
    window = packing.window(0, tokens)
    assert packing.num_windows == 1
    assert window["tokens"].tolist() == [70_010, 70_011, 70_012, 70_013, 70_014, 0, 0, 0]
    assert window["segment_ids"].tolist() == [1, 1, 1, 2, 2, 0, 0, 0]
    assert window["positions"].tolist() == [0, 1, 2, 0, 1, 0, 0, 0]


def test_millions_of_documents():
    packing = pack(starts_of(log_normal(5, count=2_000_000, mean=5.0)), 1024)
    assert packing.padding < 1e-3
    assert np.add.reduceat(packing.piece_length, packing.window_first[:-1]).max() <= 1024


@pytest.mark.parametrize(
    ("starts", "length", "message"),
    [
        ([0, 3], 0, "data.length=0: must be at least 1"),
        ([0], 8, "data.packing='documents': needs at least one document"),
    ],
)
def test_what_cannot_be_packed_is_refused(starts, length, message):
    with pytest.raises(ConfigError) as error:
        pack(np.array(starts), length)
    assert str(error.value) == message
