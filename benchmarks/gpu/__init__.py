"""What one GPU does with routed computation: correctness of every backend, speeds, memory. `python -m benchmarks.gpu`.

Sections, each a process of its own with a time limit; a section prints one JSON line for every finding the moment that
it has it. Needs jax, flax, optax, chex and numpy only; PyTorch and transformers, where they are, join on the same
device.
"""
