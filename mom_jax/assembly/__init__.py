"""Chunks: H assembly steps over one pool of attention modules and one of FFN modules.

step         one assembly step, as the paper has it: both the scan and decoding go through it
sides        what a side of a chunk does in a step: choose modules and compute with them, or compute with its only one
weights      a chunk's weights, prepared for its steps
observation  what a pass observes of its routing: statistics, captured values, and choices that are exchanged
chunk        the parameters, and the steps: a scan, or, with a cache, one after another
"""

from mom_jax.assembly.chunk import Chunk, Noise, StepOutputs
from mom_jax.assembly.observation import CAPTURES, Observation
from mom_jax.assembly.weights import ChunkWeights

__all__ = ["CAPTURES", "Chunk", "ChunkWeights", "Noise", "Observation", "StepOutputs"]
