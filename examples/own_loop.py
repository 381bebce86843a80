"""A training loop of one's own, the library and optax alone, on the bytes of a text: `python own_loop.py FILE`."""

import sys
from pathlib import Path

import jax
import numpy as np
import optax
from flax import nnx

import mom_jax as mom
from mom_jax.losses import LossSums, finish, next_token

config = mom.ModelConfig(vocab_size=256, context_length=64, d_model=64, num_heads=4, num_steps=4, top_k=2)
optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3, b2=0.95, weight_decay=0.1))


def loss_of(params: dict, tokens_BxL: jax.Array) -> tuple[jax.Array, jax.Array]:
    output = mom.with_parameters(config, params)(tokens_BxL)
    losses = finish(LossSums(*next_token(output, tokens_BxL), output.routing), config)
    return losses.total, losses.loss  # with the balance loss; the cross entropy alone, nats per token


@jax.jit
def train_step(params: dict, state: optax.OptState, tokens_BxL: jax.Array) -> tuple[dict, optax.OptState, jax.Array]:
    gradient, loss = jax.grad(loss_of, has_aux=True)(params, tokens_BxL)
    updates, state = optimizer.update(gradient, state, params)
    return optax.apply_updates(params, updates), state, loss


def main(file: str, steps: int = 100) -> list[float]:
    text, draw = np.frombuffer(Path(file).read_bytes(), np.uint8), np.random.default_rng(0)
    params = mom.parameters(mom.MoM(config, rngs=nnx.Rngs(0)))
    state, losses = optimizer.init(params), []
    for step in range(steps):
        starts = draw.integers(0, len(text) - config.context_length, 8)
        tokens_BxL = np.stack([text[i : i + config.context_length] for i in starts]).astype(np.int32)
        params, state, loss = train_step(params, state, tokens_BxL)
        losses.append(float(loss))
        if step % 10 == 0:
            print(f"step {step}: {loss:.3f} nats per byte")
    return losses


if __name__ == "__main__":
    main(sys.argv[1])
