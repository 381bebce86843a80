"""A batch of training or evaluation data, as the steps read it."""

from collections.abc import Mapping
from typing import Any

import numpy as np

# What a step reads, arrays [B, L] by name. `tokens`: int32 ids. All others may be absent:
# `mask`: true for the real tokens; the others are padding. `labels`: int32, instead of `tokens`; -100 does not count.
# `segment_ids`: int32, 1, 2, ... for the documents that share a row, which are computed as if each were alone; 0 is
# padding. `positions`: int32, from 0 on in every segment; without it positions count from the row's beginning.
# With `classes`, int32 [B], or `targets`, float32 [B], and a mask the loss is the classification head's, of each row's
# last real token; rows that are all padding do not count.
Batch = Mapping[str, Any]


Rows = dict[str, np.ndarray]  # a batch that is still on the host
