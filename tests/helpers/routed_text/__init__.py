"""Routes of a small text that nobody trained for, with everything in it that a page must show and must not obey."""

import numpy as np

from mom_jax.analysis.routes import Routes, SideRoutes
from mom_jax.config import ModelConfig

CONFIG = ModelConfig(vocab_size=64, num_attn_modules=2, num_ffn_modules=3, num_steps=2, num_chunks=2, top_k=2)
PIECES = [
    "def",
    " f",
    "(",
    "x",
    "):",
    "\n    ",
    "return",
    " ",
    "\t",
    "</script>",
    "<b>&amp;",
    "\\xe2",
    "",
    "é",
    "\n\n",
    "'\"",
]


def routes(seed=0, windows=2, config=CONFIG, pieces=PIECES):
    """Choices are random: distinct classes of each token, best first, weights that add up to 1."""
    rng = np.random.default_rng(seed)
    length = len(pieces)
    tokens, steps = windows * length, config.num_chunks * config.num_steps
    sides = {}
    for side in config.routed_sides:
        scores = rng.random((steps, tokens, config.classes(side)))
        index = np.argsort(-scores, -1)[..., : config.top_k].astype(np.int32)
        weight = np.take_along_axis(scores, index, -1)
        weight = (weight / weight.sum(-1, keepdims=True)).astype(np.float32)
        sides[side] = SideRoutes(index, weight, config.modules(side))
    loss = rng.exponential(2.0, tokens).astype(np.float32)
    loss[length - 1 :: length] = np.nan
    ids = np.tile(np.arange(length, dtype=np.int32), windows)
    return Routes(
        ids_T=ids,
        position_T=ids,
        window_T=np.repeat(np.arange(windows, dtype=np.int32), length),
        loss_T=loss,
        sides=sides,
        steps=steps,
    )
