"""Attention in blocks of queries that skip the keys after them; keeps only its output and one number per query.

q, k, v [B, h, L, d] -> [B, h, L, d].
"""

import jax
import jax.numpy as jnp

from mom_jax.attention.plain import exponentials, scores
from mom_jax.attention.view import View
from mom_jax.products import transposed
from mom_jax.remat import save

MIN_QUERIES, MAX_BLOCKS = 64, 8  # a block of queries; more blocks skip more and make a longer program


def _ranges(length: int) -> list[slice]:
    """The blocks of queries. A block sees no key after its end."""
    size = max(MIN_QUERIES, -(-length // MAX_BLOCKS))
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def blocked(q: jax.Array, k: jax.Array, v: jax.Array, view: View) -> jax.Array:
    """Attention of q, k, v [B, h, L, d] in their dtype, [B, h, L, d].

    The backward pass makes the probabilities anew, from one number per query (FlashAttention, arXiv 2205.14135).
    """
    return _attention(q, k, v, view.visible)


@jax.custom_vjp
def _attention(q: jax.Array, k: jax.Array, v: jax.Array, visible: jax.Array) -> jax.Array:
    return _attention_forward(q, k, v, visible)[0]


def _attention_forward(q: jax.Array, k: jax.Array, v: jax.Array, visible: jax.Array) -> tuple[jax.Array, tuple]:
    outputs, norms = [], []
    for part in _ranges(q.shape[2]):
        keys = slice(part.stop)
        p, total, largest = exponentials(q[:, :, part], k[:, :, keys], visible[:, part, keys])
        output = jnp.einsum("bhlm,bhmd->bhld", p.astype(v.dtype), v[:, :, keys], preferred_element_type=jnp.float32)
        outputs.append((output / total).astype(v.dtype))
        norms.append(largest + jnp.log(total))
    output = save(jnp.concatenate(outputs, 2))
    norm = save(jnp.concatenate(norms, 2))
    return output, (q, k, v, visible, output, norm)


def _attention_backward(residual: tuple, d: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    """The probabilities are made again from the logits and their logsumexp (FlashAttention, arXiv 2205.14135)."""
    q, k, v, visible, output, norm = residual
    correction = (output.astype(jnp.float32) * d.astype(jnp.float32)).sum(-1, keepdims=True)
    batch, heads, length, width = q.shape
    d_q, d_k, d_v = [], *jnp.zeros((2, batch, heads, width, length), jnp.float32)
    scale = q.shape[-1] ** -0.5

    def times(form: str, a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.einsum(form, a.astype(q.dtype), b.astype(q.dtype), preferred_element_type=jnp.float32)

    q_t, d_t = transposed(q), transposed(d)
    for part in _ranges(q.shape[2]):
        keys = slice(part.stop)
        logits = scores(q[:, :, part], k[:, :, keys])
        p = jnp.exp(jnp.where(visible[:, None, part, keys], logits - norm[:, :, part], -jnp.inf))
        d_p = times("bhld,bhmd->bhlm", d[:, :, part], v[:, :, keys])
        d_logits = p * (d_p - correction[:, :, part]) * scale
        d_q.append(times("bhlm,bhmd->bhld", d_logits, k[:, :, keys]).astype(q.dtype))
        d_k = d_k.at[..., keys].add(times("bhdl,bhlm->bhdm", q_t[..., part], d_logits))
        d_v = d_v.at[..., keys].add(times("bhdl,bhlm->bhdm", d_t[..., part], p))
    d_k, d_v = (t.swapaxes(2, 3).astype(q.dtype) for t in (d_k, d_v))
    return jnp.concatenate(d_q, 2), d_k, d_v, None


_attention.defvjp(_attention_forward, _attention_backward)
