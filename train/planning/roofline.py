"""How long a step takes at least, from what its program does and what the chip can do at most.

Three things take time: products, memory, communication. If they overlapped perfectly the longest would be the step;
if not at all, their sum. A real step lies between, and loses what no product shows: norms, sorting, gathers of rows.
"""

import dataclasses

from mom_jax.analysis.cost import train_flops_per_token
from train.config import Config, Phase
from train.planning.program import Program

# Of a product unit's and a memory's peak large programs reach so much; a ring uses the links of one axis of the torus.
COMPUTE_SHARE, MEMORY_SHARE, LINK_SHARE, NETWORK_SHARE = 0.7, 0.8, 0.5, 0.8
ASSUMPTIONS = (
    f"products run at {COMPUTE_SHARE:.0%} of the peak, memory at {MEMORY_SHARE:.0%}, collectives over {LINK_SHARE:.0%} "
    f"of the links and, between servers of GPUs, {NETWORK_SHARE:.0%} of the network; memory moves operands and results "
    "of every product, and the state twice; routing is balanced and nothing is skipped; 'overlapped' takes the longest "
    "of the three times, 'one after the other' their sum"
)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Seconds of one step. best: everything overlaps. worst: nothing does. mfu: of both, as fractions, the FLOPs that
    the model needs (attention's masked half not counted) over what the chips could do. hours: of the whole phase."""

    products: float
    memory: float
    communication: float
    mfu_best: float
    mfu_worst: float
    hours_best: float
    hours_worst: float

    @property
    def best(self) -> float:
        return max(self.products, self.memory, self.communication)

    @property
    def worst(self) -> float:
        return self.products + self.memory + self.communication


def estimate(config: Config, phase: Phase, program: Program) -> Estimate | None:
    """None where the program was not compiled to its end."""
    if program.flops is None or program.product_bytes is None:
        return None
    chip, model = program.device, config.model_of(phase.name)
    peak = chip.flops(model.dtype)
    communication = sum(program.sent.values()) / (LINK_SHARE * chip.link_bandwidth)
    if program.sent_across and chip.network_bandwidth is not None:
        # Links and network work on the same rings.
        communication = max(communication, program.sent_across / (NETWORK_SHARE * chip.network_bandwidth))
    times = (
        program.flops / (COMPUTE_SHARE * peak),
        (program.product_bytes + program.state_bytes) / (MEMORY_SHARE * chip.memory_bandwidth),
        communication,
    )
    needed = train_flops_per_token(model, config.data.length)
    needed *= config.data.batch_size * config.data.length / (peak * program.chips)
    best, worst = max(times), sum(times)
    hours = [phase.steps * seconds / 3600 for seconds in (best, worst)]
    return Estimate(*times, needed / best, needed / worst, *hours)
