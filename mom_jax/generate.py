"""Text generation: prefill the cache with the prompts, then decode token by token in one compiled loop."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mom_jax.assembly import Noise
from mom_jax.config import ModelConfig
from mom_jax.model import Cache, MoM, Output, parameters, with_parameters

PROMPT_BUCKET = 32  # prompts are padded to a multiple of this, so that few lengths are ever compiled


def generate(
    model: MoM,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
    eos_id: int | None = None,
) -> list[list[int]]:
    """The tokens that follow each prompt (prompts not included), at most `max_new_tokens`, ending before `eos_id`.

    temperature: 0 takes the most probable token, otherwise the logits are divided by it. top_k: draw among the k most
    probable tokens only. Raises ValueError for an empty prompt, for prompt and new tokens that exceed the model's
    context, and for impossible settings.
    """
    config = model.config
    longest = max((len(prompt) for prompt in prompts), default=0)
    if not prompts or min(len(prompt) for prompt in prompts) == 0:
        raise ValueError("prompts: each must have at least one token")
    unknown = [token for prompt in prompts for token in prompt if not 0 <= token < config.vocab_size]
    if unknown:
        raise ValueError(f"prompts: token {unknown[0]} is not below vocab_size={config.vocab_size}")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens}: must be at least 1")
    if longest + max_new_tokens > config.context_length:
        have = f"the longest prompt's {longest} tokens and max_new_tokens={max_new_tokens}"
        raise ValueError(f"{have} exceed context_length={config.context_length}")
    if not temperature >= 0:
        raise ValueError(f"temperature={temperature}: must be at least 0")
    if top_k is not None and not 1 <= top_k <= config.vocab_size:
        raise ValueError(f"top_k={top_k}: must lie between 1 and vocab_size={config.vocab_size}")
    width = min(-(-longest // PROMPT_BUCKET) * PROMPT_BUCKET, config.context_length)
    ids, mask = np.zeros((len(prompts), width), np.int32), np.zeros((len(prompts), width), np.bool_)
    for i, prompt in enumerate(prompts):
        ids[i, width - len(prompt) :], mask[i, width - len(prompt) :] = prompt, True
    settings = {"config": config, "steps": max_new_tokens, "temperature": float(temperature), "top_k": top_k}
    tokens = np.asarray(_generate(parameters(model), ids, mask, jax.random.key(seed), **settings))
    return [_until(row.tolist(), eos_id) for row in tokens]


def _until(tokens: list[int], eos_id: int | None) -> list[int]:
    return tokens[: tokens.index(eos_id)] if eos_id in tokens else tokens


@functools.partial(jax.jit, static_argnames=("config", "steps", "temperature", "top_k"))
def _generate(
    params: dict,
    ids: jax.Array,
    mask: jax.Array,
    key: jax.Array,
    *,
    config: ModelConfig,
    steps: int,
    temperature: float,
    top_k: int | None,
) -> jax.Array:
    """Left-padded ids [B, L] -> new tokens [B, steps]."""
    model = with_parameters(config, params)
    batch, width = ids.shape

    def call(ids: jax.Array, mask: jax.Array, positions: jax.Array, cache: Cache, key: jax.Array) -> Output:
        noise = _noise(config, batch, ids.shape[1], key)
        return model(ids, mask=mask, positions=positions, cache=cache, noise=noise)

    def draw(output: Output, key: jax.Array) -> jax.Array:
        logits = output.logits[:, -1]
        if temperature == 0:
            return jnp.argmax(logits, -1).astype(jnp.int32)
        if top_k is not None:
            least = jax.lax.top_k(logits, top_k)[0][:, -1:]
            logits = jnp.where(logits >= least, logits, -jnp.inf)
        return jax.random.categorical(key, logits / temperature).astype(jnp.int32)

    positions = jnp.maximum(jnp.cumsum(mask.astype(jnp.int32), 1) - 1, 0)
    first_key, noise_key, key = jax.random.split(key, 3)
    output = call(ids, mask, positions, model.init_cache(batch, width + steps), noise_key)
    token = draw(output, first_key)

    def body(carry: tuple, key: jax.Array) -> tuple[tuple, jax.Array]:
        token, position, cache = carry
        draw_key, noise_key = jax.random.split(key)
        output = call(token[:, None], jnp.ones((batch, 1), bool), position[:, None], cache, noise_key)
        following = draw(output, draw_key)
        return (following, position + 1, output.cache), following

    start = (token, positions[:, -1] + 1, output.cache)
    _, rest = jax.lax.scan(body, start, jax.random.split(key, steps - 1))
    return jnp.concatenate([token[:, None], rest.T], axis=1)


def _noise(config: ModelConfig, batch: int, length: int, key: jax.Array) -> Noise | None:
    """What a `gru_random` model wants in evaluation where its configuration says so."""
    if not (config.router.kind == "gru_random" and config.router.noise_in_evaluation):
        return None
    shape = (config.num_chunks, config.num_steps, batch, length, config.router.dim)
    return Noise(*(jax.random.uniform(k, shape) for k in jax.random.split(key)))
