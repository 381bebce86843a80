"""Windows of whole documents: which pieces of a token cache share a window, and what a model is told of them.

A document that fits a window is never cut. The pieces fill the windows by best fit, the longest first; a window's
segments keep its documents apart.
"""

import dataclasses

import numpy as np

from mom_jax.fields import require


@dataclasses.dataclass(frozen=True, eq=False)
class Packing:
    """Pieces of documents in windows of `length` tokens.

    Window w has the pieces window_first[w] to window_first[w + 1] - 1. window_first: int64 [windows + 1]. piece_start:
    int64 [pieces], where in the cache a piece begins. piece_length: int32 [pieces], tokens, from 1 to `length`. cut:
    how many documents are longer than a window and so in more than one piece. Pieces are in the cache's order within a
    window, and windows in the order of their first pieces.
    """

    length: int
    window_first: np.ndarray
    piece_start: np.ndarray
    piece_length: np.ndarray
    cut: int

    @property
    def num_windows(self) -> int:
        return len(self.window_first) - 1

    @property
    def tokens(self) -> int:
        """How many tokens the windows hold: all of the cache's."""
        return int(self.piece_length.sum(dtype=np.int64))

    @property
    def padding(self) -> float:
        """The share of the windows' places that hold no token."""
        return 1 - self.tokens / (self.num_windows * self.length)

    def window(self, index: int, tokens: np.ndarray) -> dict[str, np.ndarray]:
        """Window `index` of a cache's `tokens` [tokens]: arrays int32 [length], all 0 where the window is padded.

        tokens: the ids. segment_ids: 1, 2, ... in turn, a piece each. positions: from 0 on in every piece.
        """
        pieces = slice(self.window_first[index], self.window_first[index + 1])
        starts, lengths = self.piece_start[pieces], self.piece_length[pieces]
        ends = np.cumsum(lengths)
        used = slice(ends[-1])
        result = {name: np.zeros(self.length, np.int32) for name in ("tokens", "segment_ids", "positions")}
        result["tokens"][used] = np.concatenate([tokens[i : i + n] for i, n in zip(starts, lengths, strict=True)])
        result["segment_ids"][used] = np.repeat(np.arange(1, len(lengths) + 1), lengths)
        result["positions"][used] = np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)
        return result


def pack(starts: np.ndarray, length: int) -> Packing:
    """All documents of a cache in windows of `length` tokens; document i has tokens starts[i] to starts[i + 1] - 1.

    starts: int64 [documents + 1], increasing. Longer documents are cut every `length` tokens. The same documents give
    the same windows, always. Raises `ConfigError` if `length` is below 1 or there is no document.
    """
    require(length >= 1, "data.length", length, "must be at least 1")
    require(len(starts) > 1, "data.packing", "documents", "needs at least one document")
    piece_start, piece_length, cut = _pieces(starts, length)
    window = _in_order(_best_fit(piece_length, length))
    order = np.argsort(window, kind="stable")
    first = np.concatenate([[0], np.cumsum(np.bincount(window))])
    return Packing(length, first, piece_start[order], piece_length[order], cut)


def _pieces(starts: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray, int]:
    """(piece_start, piece_length, the number of documents in several pieces), in the cache's order."""
    lengths = np.diff(starts)
    count = -(-lengths // length)  # of pieces, by document
    cut = int((count > 1).sum())
    if cut == 0:
        return starts[:-1], lengths.astype(np.int32), 0
    # Piece p of them all begins at starts[i] + (p - first of document i) * length.
    start = np.repeat(starts[:-1] - (np.cumsum(count) - count) * length, count)
    start += np.arange(0, len(start) * length, length)
    rest = np.repeat(starts[1:], count) - start
    return start, np.minimum(rest, length).astype(np.int32), cut


def _best_fit(piece_length: np.ndarray, length: int) -> np.ndarray:
    """The window of every piece, int32, by best-fit decreasing.

    Pieces of one length are alike, and so are windows with the same room: what is handled at once is all pieces of a
    length and a run of windows, numbered in a row, that have the same room.
    """
    # The narrow type is sorted in linear time.
    order = np.argsort((length - piece_length).astype(np.min_scalar_type(length)), kind="stable")
    count = np.bincount(piece_length, minlength=length + 1)
    window = np.empty(len(order), np.int32)
    runs: list[list[tuple[int, int]]] = [[] for _ in range(length + 1)]  # by room: (first window, number of windows)
    placed = opened = 0
    for size in np.flatnonzero(count)[::-1].tolist():
        left = int(count[size])
        for room in range(size, length + 1):
            waiting, runs[room] = runs[room], []
            each = room // size  # best fit fills a window to the end before it takes the next one
            if room == length:
                waiting = [(opened, -(-left // each))]
                opened += waiting[0][1]
            for first, windows in waiting:
                pieces = min(left, windows * each)
                full, rest = divmod(pieces, each)
                window[order[placed : placed + pieces]] = first + np.arange(pieces, dtype=np.int32) // each
                placed, left = placed + pieces, left - pieces
                used = full + (rest > 0)
                for start, stop, taken in ((0, full, each), (full, used, rest), (used, windows, 0)):
                    if start < stop:
                        runs[room - taken * size].append((first + start, stop - start))
            if not left:
                break
    return window


def _in_order(window: np.ndarray) -> np.ndarray:
    """The same windows, numbered in the order of their first pieces."""
    first = np.full(window.max() + 1, len(window), np.int32)
    np.minimum.at(first, window, np.arange(len(window), dtype=np.int32))
    number = np.empty(len(first), np.int32)
    number[np.argsort(first)] = np.arange(len(first), dtype=np.int32)
    return number[window]
