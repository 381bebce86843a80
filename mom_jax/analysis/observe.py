"""One forward pass seen from inside, on a mesh: what every token chose, how well it predicted the next one, and the
residual stream that the steps saw."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, PartitionSpec

from mom_jax import sharding
from mom_jax.config import ModelConfig
from mom_jax.evaluation import counted, for_evaluation
from mom_jax.losses import IGNORE
from mom_jax.losses.chunked import label_scores
from mom_jax.model import MoM, with_parameters

# Of a batch these are read: `tokens` int32 ids, `mask` (true for real tokens), `segment_ids` (documents that share a
# row, 0 is padding), `positions`; all [B, L], all but `tokens` may be absent.
FIELDS = ("tokens", "mask", "segment_ids", "positions")


def place(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """A batch that every process has whole, on the mesh, with rows of padding where devices had not as many each."""
    rows = {name: np.asarray(batch[name]) for name in FIELDS if name in batch}
    count = rows["tokens"].shape[0]
    missing = -count % mesh.size
    if "segment_ids" not in rows and (missing or "mask" in rows):
        rows["mask"] = np.asarray(rows.get("mask", np.ones(rows["tokens"].shape, bool)), bool)
    if rows.get("positions", rows["tokens"]).shape[0] != count:  # one row for all
        rows["positions"] = np.broadcast_to(rows["positions"], rows["tokens"].shape)
    padded = {name: np.pad(array, [(0, missing), (0, 0)]) for name, array in rows.items()}
    return {name: sharding.place_rows(array, mesh) for name, array in padded.items()}


@functools.partial(jax.jit, static_argnames=("config", "mesh", "inputs"))
def observe(
    params: dict[Any, Any],
    batch: Mapping[str, jax.Array],
    step: jax.Array | None,
    *,
    config: ModelConfig,
    mesh: Mesh,
    inputs: bool = False,
) -> dict[str, jax.Array]:
    """A forward pass without dropout of a batch that `place` made; everything whole on every device:

    real      [B, L] bool, the tokens that are no padding
    nll       [B, L] float32, -log p of the next token in nats, nan where there is none
    SIDE/index, SIDE/weight   [B, S·H, L, K] of the routed sides: what tokens chose, best first, and its weights
    inputs    (where asked for, and there are chunks) [B, L, D] float32: of row b the residual stream before step b mod
              S·H, counted through all chunks

    step: training steps taken, for priors that are annealed; None for their full strength.
    """
    config, key = for_evaluation(config)

    def run(params: dict[Any, Any], batch: Mapping[str, jax.Array], step: jax.Array | None) -> dict[str, jax.Array]:
        mask, labels = counted(batch)
        output = with_parameters(config, params)(
            batch["tokens"],
            mask=mask,
            segment_ids=batch.get("segment_ids"),
            positions=batch.get("positions"),
            key=key,
            step=step,
            capture=("routing", "hidden") if inputs else ("routing",),
        )
        labels = jnp.pad(labels[:, 1:], ((0, 0), (0, 1)), constant_values=IGNORE)
        value, _ = label_scores(output.hidden, output.unembedding, labels)
        seen = {
            "real": jnp.ones(labels.shape, bool) if mask is None else mask,
            "nll": jnp.where(labels < 0, jnp.nan, -value),
        }
        for side in config.routed_sides:
            for name in ("index", "weight"):
                steps = output.captured[f"{side}/{name}"]  # [S, H, B, L, K]
                seen[f"{side}/{name}"] = jnp.moveaxis(steps.reshape(-1, *steps.shape[2:]), 0, 1)
        if inputs and config.num_chunks:
            seen["inputs"] = _inputs(output.captured, config)
        return {name: sharding.gather_tokens(array, *sharding.AXES) for name, array in seen.items()}

    model = nnx.eval_shape(lambda: MoM(config, rngs=nnx.Rngs(0)))
    whole = PartitionSpec()
    in_specs = (sharding.parameter_specs(model, mesh), PartitionSpec(sharding.AXES), whole)
    return sharding.on_devices(run, mesh, in_specs=in_specs, out_specs=whole)(params, batch, step)


def _inputs(captured: dict[str, jax.Array], config: ModelConfig) -> jax.Array:
    """Of each row the residual stream before one of the steps, [B, L, D]."""
    before = captured[f"bottom/{config.num_bottom - 1}"] if config.num_bottom else captured["embed"]
    steps = []
    for i in range(config.num_chunks):
        after = captured[f"chunks/{i}"]  # [H, B, L, D]
        steps += [before[None], after[:-1]]
        before = captured[f"anchors/{i}"] if config.anchor_after_chunk else after[-1]
    stream = jnp.concatenate(steps)  # [S·H, B, L, D]
    rows = jnp.arange(stream.shape[1], dtype=jnp.int32)
    if sharding.size(*sharding.AXES) > 1:
        rows += stream.shape[1] * jax.lax.axis_index(sharding.AXES)
    own = (rows % stream.shape[0])[None, :, None, None]
    return jnp.take_along_axis(stream, own, axis=0)[0].astype(jnp.float32)
