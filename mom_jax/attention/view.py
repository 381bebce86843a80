"""What attention may see in a call."""

from typing import NamedTuple

import jax


class View(NamedTuple):
    """What attention may see in this call.

    visible: [B or 1, L, M] bool, token l sees slot m. start: the slot of the call's first token where there are earlier
    ones in a cache; without any M = L and no token sees a later one. segment_ids: [B, L] int32 or None: another way to
    say `visible` for tokens that are not padding: where given, the earlier tokens of the same segment, else all earlier
    tokens.
    """

    visible: jax.Array
    start: jax.Array | None = None
    segment_ids: jax.Array | None = None
