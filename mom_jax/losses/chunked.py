"""The loss of a language model's head, in chunks of the sequence: the logits of all tokens never exist at once.

The forward pass of a differentiated call computes the gradients as well, chunk by chunk, while the logits are there: no
product is made twice, and what stays for the backward pass has the size of the head's input and matrix.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from mom_jax.checks import check_array
from mom_jax.platforms import platform
from mom_jax.products import matmul, matmul_transposed, transposed

# Logits that exist at once: on a CPU so many as its caches hold in good part, elsewhere enough for large products.
CHUNK_LOGITS = {"cpu": 1 << 22}
DEFAULT_CHUNK_LOGITS = 1 << 27


@jax.custom_vjp
def linear_cross_entropy(hidden_BxLxD: jax.Array, kernel_VxD: jax.Array, labels_BxL: jax.Array) -> jax.Array:
    """The sum of -log softmax(hidden · kernelᵀ)[label] over the tokens, nats, float32; a negative label does not count.

    Operands of the products have the dtype of `hidden`, sums are float32.
    """
    _check("linear_cross_entropy", hidden_BxLxD, kernel_VxD, labels_BxL)
    kernel = kernel_VxD.astype(hidden_BxLxD.dtype)

    def chunk(total: jax.Array, part: tuple) -> tuple[jax.Array, None]:
        nll, _ = _chunk(part, kernel, differentiate=False)
        return total + nll, None

    return jax.lax.scan(chunk, jnp.float32(0), split(hidden_BxLxD, labels_BxL, kernel.shape[0]))[0]


def label_scores(hidden_BxLxD: jax.Array, kernel_VxD: jax.Array, labels_BxL: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(log softmax(hidden · kernelᵀ)[label], nats, float32 [B, L]; whether the label has the largest logit, the first
    of equal ones, bool [B, L]). A negative label has 0 and true; chunks with none but such are not computed.
    """
    _check("label_scores", hidden_BxLxD, kernel_VxD, labels_BxL)
    kernel = kernel_VxD.astype(hidden_BxLxD.dtype)

    def score(part: tuple) -> tuple[jax.Array, jax.Array]:
        hidden, labels = part
        logits = matmul_transposed(hidden, kernel)
        counts = labels >= 0
        label = jnp.where(counts, labels, 0)
        value = jnp.take_along_axis(logits, label[..., None], -1)[..., 0] - jax.nn.logsumexp(logits, -1)
        first = jnp.argmax(logits, -1).astype(labels.dtype) == label
        return jnp.where(counts, value, 0.0), first | ~counts

    def skip(part: tuple) -> tuple[jax.Array, jax.Array]:
        return jnp.zeros(part[1].shape, jnp.float32), jnp.ones(part[1].shape, bool)

    def chunk(part: tuple) -> tuple[jax.Array, jax.Array]:
        return jax.lax.cond((part[1] >= 0).any(), score, skip, part)

    value, first = jax.lax.map(chunk, split(hidden_BxLxD, labels_BxL, kernel.shape[0]))
    return joined(value, labels_BxL.shape), joined(first, labels_BxL.shape)


def _check(name: str, hidden: jax.Array, kernel: jax.Array, labels: jax.Array) -> None:
    check_array(f"{name}: hidden_BxLxD", hidden, (*labels.shape, None), float)
    check_array(f"{name}: kernel_VxD", kernel, (None, hidden.shape[-1]), float)
    check_array(f"{name}: labels_BxL", labels, (None, None), int)


def split(hidden: jax.Array, labels: jax.Array, vocabulary: int) -> tuple[jax.Array, jax.Array]:
    """Hidden states [C, T / C, D] and labels [C, T / C]; the sequence is filled up with labels that do not count.

    The sequence is split, not the batch, which may lie on several devices.
    """
    batch, length = labels.shape
    most = CHUNK_LOGITS.get(platform(), DEFAULT_CHUNK_LOGITS)
    chunks = min(length, math.ceil(batch * length * vocabulary / most))
    size = math.ceil(length / chunks)
    fill = chunks * size - length
    hidden = jnp.pad(hidden, ((0, 0), (0, fill), (0, 0)))
    labels = jnp.pad(labels, ((0, 0), (0, fill)), constant_values=-1)
    hidden = hidden.reshape(batch, chunks, size, -1).swapaxes(0, 1).reshape(chunks, batch * size, -1)
    return hidden, labels.reshape(batch, chunks, size).swapaxes(0, 1).reshape(chunks, -1)


def joined(chunks: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Rows [C, T / C, ...] of chunks as `split` makes them, in their places [B, L, ...]; shape: (B, L)."""
    (batch, length), rest = shape, chunks.shape[2:]
    rows = chunks.reshape(chunks.shape[0], batch, -1, *rest).swapaxes(0, 1)
    return rows.reshape(batch, -1, *rest)[:, :length]


def _chunk(part: tuple[jax.Array, jax.Array], kernel: jax.Array, *, differentiate: bool) -> tuple:
    """A chunk's loss and, if asked for, its gradient with respect to the logits [T, V] in the dtype of `hidden`."""
    hidden, labels = part
    logits = matmul_transposed(hidden, kernel)
    counts = labels >= 0
    label = jnp.where(counts, labels, 0)[..., None]
    norm = jax.nn.logsumexp(logits, -1, keepdims=True)
    nll = jnp.where(counts, (norm - jnp.take_along_axis(logits, label, -1))[..., 0], 0.0).sum()
    if not differentiate:
        return nll, None
    is_label = jnp.arange(kernel.shape[0], dtype=labels.dtype)[None] == label
    d_logits = jnp.where(counts[..., None], jnp.exp(logits - norm) - is_label.astype(jnp.float32), 0.0)
    return nll, d_logits.astype(hidden.dtype)


def with_gradients(
    loss_of: Callable[[tuple, jax.Array], tuple[jax.Array, jax.Array]],
    start: jax.Array,
    parts: tuple[jax.Array, ...],
    kernel: jax.Array,
    shape: tuple[int, ...],
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """(sums over the chunks, (d hidden, d kernel)) of a loss of the logits hidden · kernelᵀ.

    loss_of: (a chunk, the kernel in the dtype of the hidden states) -> (its sums, the gradient of what is learnt with
    respect to its logits). start: zeros like the sums. parts: chunks whose first entry is the hidden states. shape:
    (B, L).
    """
    dtype = parts[0].dtype
    operand = kernel.astype(dtype)

    def chunk(carry: tuple, part: tuple) -> tuple[tuple, jax.Array]:
        total, d_kernel_t = carry
        sums, d_logits = loss_of(part, operand)
        d_kernel_t += matmul(transposed(part[0]), d_logits)
        return (total + sums, d_kernel_t), matmul(d_logits, operand).astype(dtype)

    # Transposed until the end: what is transposed in each chunk is then the small operand.
    carry = start, jnp.zeros(kernel.shape[::-1], jnp.float32)
    (total, d_kernel_t), d_hidden = jax.lax.scan(chunk, carry, parts)
    return total, (joined(d_hidden, shape), d_kernel_t.T.astype(kernel.dtype))


def scaled(gradients: tuple[jax.Array, jax.Array], d: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The gradients of `with_gradients` times that of what is learnt, in their own dtypes."""
    d_hidden, d_kernel = gradients
    return (d_hidden.astype(jnp.float32) * d).astype(d_hidden.dtype), (d_kernel * d).astype(d_kernel.dtype)


def _forward(hidden: jax.Array, kernel: jax.Array, labels: jax.Array) -> tuple[jax.Array, tuple]:
    parts = split(hidden, labels, kernel.shape[0])
    loss_of = functools.partial(_chunk, differentiate=True)
    return with_gradients(loss_of, jnp.float32(0), parts, kernel, labels.shape)


def _backward(residual: tuple, d: jax.Array) -> tuple[jax.Array, jax.Array, None]:
    return *scaled(residual, d), None


linear_cross_entropy.defvjp(_forward, _backward)
