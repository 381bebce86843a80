"""All meshes of a number of chips, ranked by arithmetic on sizes: what to compile first.

The model knows memory (state, gathered pools and their gradients, activations) and the bytes that parameters and tokens
travel; it does not know what XLA makes of them. It serves to leave out what cannot be good.
"""

import contextlib
import dataclasses
from collections.abc import Iterator

from mom_jax.analysis.chips import Chip
from mom_jax.analysis.cost import busiest_share, forward_flops_by_part, parameter_count, training_memory_bytes
from mom_jax.config import ModelConfig, Side
from mom_jax.fields import ConfigError
from mom_jax.sharding import AXES, MeshConfig
from train.config import Config, Phase
from train.planning.roofline import COMPUTE_SHARE, LINK_SHARE
from train.steps.compiled import check_sizes
from train.steps.sums import needs_whole_batch


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A mesh, the seconds of a step (products and communication one after the other), bytes of memory on a chip."""

    mesh: MeshConfig
    seconds: float
    memory: int

    def order(self, chip: Chip) -> tuple[bool, float, int]:
        """Those that fit come first, then the fastest, then the smallest."""
        return self.memory > chip.memory_bytes, self.seconds, self.memory


def candidates(config: Config, phase: Phase, model: ModelConfig, chips: int, chip: Chip) -> list[Candidate]:
    """All meshes that can be, the best first."""
    found = []
    for sizes in _factors(chips, 4):
        mesh = MeshConfig(**dict(zip(AXES, sizes, strict=True)), room=config.mesh.room, gather=config.mesh.gather)
        with contextlib.suppress(ConfigError):
            found.append(by_arithmetic(config, phase, model, mesh, chips, chip))
    return sorted(found, key=lambda candidate: candidate.order(chip))


def _factors(number: int, parts: int) -> Iterator[tuple[int, ...]]:
    """All ways to write `number` as a product of so many factors, in order."""
    if parts == 1:
        yield (number,)
        return
    for first in range(1, number + 1):
        if number % first == 0:
            yield from ((first, *rest) for rest in _factors(number // first, parts - 1))


def by_arithmetic(
    config: Config, phase: Phase, model: ModelConfig, mesh: MeshConfig, chips: int, chip: Chip
) -> Candidate:
    """One mesh, before it is compiled. Raises ConfigError where it divides the model or the batch unevenly."""
    check_sizes(config, phase, model, mesh.sizes(chips))
    length, width = config.data.length, 2 if model.dtype == "bfloat16" else 4
    sequences = config.data.batch_size // chips // phase.optim.accumulation
    tokens = config.data.batch_size // chips * length  # of one chip in one step
    twice = phase.optim.accumulation > 1 and needs_whole_batch(model)  # forward passes
    count = parameter_count(model)
    routed = bool(model.routed_sides)
    pools = count.modules if routed else 0
    pad = busiest_share(model, mesh.module)
    divided = mesh.fsdp * mesh.module * mesh.tensor
    whole = 4 * count.total / divided
    # In use: one chunk's pool and its gradient, or a layer's; and the embedding, the head and their gradients.
    layer = (count.modules + count.anchors) / max(1, model.num_layers)
    pool = pad * pools / max(1, model.num_chunks) / mesh.module / mesh.tensor
    if model.routes_values:  # every device has all modules' queries and keys
        pool += 2 * model.num_attn_modules * model.d_model**2 * (1 - 1 / mesh.module) / mesh.tensor
    in_use = 4 * 2 * (max(pool, layer / mesh.tensor) + count.embedding + count.head)
    memory = training_memory_bytes(model, sequences, length)
    resident = 4 * whole + in_use + memory["activations"] + memory["logits"]

    # Parameters: gathered in both directions in the compute dtype, gradients scattered and summed in float32.
    own = 4 * count.total / mesh.tensor / mesh.module
    once = mesh.gather == "step"
    passes = 2 * own if once else phase.optim.accumulation * (2 * own * width / 4 + own)
    sent = passes * (1 - 1 / mesh.fsdp) + 2 * whole * (1 - divided / chips)
    resident += 2 * own * once
    # Tokens: along `tensor` gathered and scattered around each product, forward and back.
    steps = model.num_chunks * model.num_steps
    row = tokens * width * model.d_model
    layers = model.num_bottom + model.num_top + model.num_chunks * model.anchor_after_chunk + steps
    sent += 3 * 4 * layers * row * (mesh.tensor - 1)
    if routed and mesh.module > 1:
        # Each choice's row goes out and comes back: two rows for an FFN, an output projection or values, four with
        # queries and keys; in the backward pass all that goes out does so again with the gradients of what came back,
        # and gradients come back. Devices along `tensor` do it for all their tokens.
        attention = (4, 6) if model.routes_values else (6, 8)
        rows_out_and_back: dict[Side, tuple[int, int]] = {"attention": attention, "ffn": (2, 3)}
        for side in model.routed_sides:
            forward, backward = rows_out_and_back[side]
            travelling = model.choices(side) * steps * row * mesh.tensor * (1 - 1 / mesh.module)
            sent += (forward * (1 + twice) + backward) * travelling
        most = max(map(model.choices, model.routed_sides))
        resident += model.exchange_room * most * sequences * length * mesh.tensor * width * 8 * model.d_model
    # The device with the most modules is waited for.
    parts = forward_flops_by_part(model, length, causal=False)
    flops = tokens * (3 + twice) * (sum(parts.values()) + (pad - 1) * parts["modules"])
    seconds = flops / (COMPUTE_SHARE * chip.flops(model.dtype)) + sent / (LINK_SHARE * chip.link_bandwidth)
    return Candidate(mesh, seconds, round(resident))
