"""Studies on one accelerator and one file of tokens, in one process that needs jax, flax, optax, chex and numpy only.

`python -m train.study.packed`: docs/studies.md
"""
