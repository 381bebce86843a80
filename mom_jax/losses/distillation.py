"""Learning from a teacher's distribution over the vocabulary (Hinton et al., arXiv 1503.02531), in chunks of the
sequence as in `chunked`: the logits of all tokens, the student's and the teacher's, never exist at once."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from mom_jax.checks import check_array
from mom_jax.losses.chunked import scaled, split, with_gradients
from mom_jax.products import matmul_transposed


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def distilled_cross_entropy(
    hidden_BxLxD: jax.Array,
    kernel_VxD: jax.Array,
    teacher_BxLxD: jax.Array,
    teacher_kernel_VxD: jax.Array,
    labels_BxL: jax.Array,
    weight: float,
    temperature: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(objective, nll, kl): float32 sums over the tokens, nats; a negative label does not count.

    nll = -log softmax(z)[label] and kl = KL(softmax(t / T) || softmax(z / T)) for the logits z = hidden · kernelᵀ, the
    teacher's t and the temperature T; objective = (1 - weight) · nll + weight · T² · kl. The objective alone has a
    gradient, and only with respect to the student's `hidden` and `kernel`. The teacher's width may be another one.

    Operands of the products have the dtypes of `hidden` and `teacher`, sums are float32.
    """
    _check(hidden_BxLxD, kernel_VxD, teacher_BxLxD, teacher_kernel_VxD, labels_BxL)
    kernel = kernel_VxD.astype(hidden_BxLxD.dtype)
    teacher_kernel = teacher_kernel_VxD.astype(teacher_BxLxD.dtype)

    def chunk(total: jax.Array, part: tuple) -> tuple[jax.Array, None]:
        sums, _ = _chunk(part, kernel, teacher_kernel, weight, temperature, differentiate=False)
        return total + sums, None

    parts = _parts(hidden_BxLxD, teacher_BxLxD, labels_BxL, kernel.shape[0])
    return tuple(jax.lax.scan(chunk, jnp.zeros(3, jnp.float32), parts)[0])


def _check(hidden: jax.Array, kernel: jax.Array, teacher: jax.Array, teacher_kernel: jax.Array, labels: Any) -> None:
    name = "distilled_cross_entropy: "
    check_array(name + "hidden_BxLxD", hidden, (*labels.shape, None), float)
    check_array(name + "kernel_VxD", kernel, (None, hidden.shape[-1]), float)
    check_array(name + "teacher_BxLxD", teacher, (*labels.shape, None), float)
    check_array(name + "teacher_kernel_VxD", teacher_kernel, (kernel.shape[0], teacher.shape[-1]), float)


def _parts(hidden: jax.Array, teacher: jax.Array, labels: jax.Array, vocabulary: int) -> tuple:
    """Chunks (hidden, teacher's hidden, labels), with as many logits of both models as there else are of one."""
    (hidden, labels), (teacher, _) = (split(rows, labels, 2 * vocabulary) for rows in (hidden, teacher))
    return hidden, teacher, labels


def _chunk(
    part: tuple, kernel: jax.Array, teacher_kernel: jax.Array, weight: float, temperature: float, *, differentiate: bool
) -> tuple:
    """A chunk's sums (objective, nll, kl) and, if asked for, the objective's gradient with respect to the logits
    [T, V] in the dtype of `hidden`."""
    hidden, teacher, labels = part
    logits = matmul_transposed(hidden, kernel)
    counts = labels >= 0
    label = jnp.where(counts, labels, 0)[..., None]
    log_p = jax.nn.log_softmax(matmul_transposed(teacher, teacher_kernel) / temperature, -1)
    log_q = jax.nn.log_softmax(logits / temperature, -1)
    p, norm = jnp.exp(log_p), jax.nn.logsumexp(logits, -1, keepdims=True)
    nll = jnp.where(counts, (norm - jnp.take_along_axis(logits, label, -1))[..., 0], 0.0).sum()
    kl = jnp.where(counts, (p * (log_p - log_q)).sum(-1), 0.0).sum()
    sums = jnp.stack([(1 - weight) * nll + weight * temperature**2 * kl, nll, kl])
    if not differentiate:
        return sums, None
    is_label = (jnp.arange(kernel.shape[0], dtype=labels.dtype)[None] == label).astype(jnp.float32)
    d_logits = (1 - weight) * (jnp.exp(logits - norm) - is_label) + weight * temperature * (jnp.exp(log_q) - p)
    return sums, jnp.where(counts[..., None], d_logits, 0.0).astype(hidden.dtype)


def _forward(
    hidden: jax.Array,
    kernel: jax.Array,
    teacher: jax.Array,
    teacher_kernel: jax.Array,
    labels: jax.Array,
    weight: float,
    temperature: float,
) -> tuple:
    teacher_operand = teacher_kernel.astype(teacher.dtype)

    def loss_of(part: tuple, operand: jax.Array) -> tuple:
        return _chunk(part, operand, teacher_operand, weight, temperature, differentiate=True)

    parts = _parts(hidden, teacher, labels, kernel.shape[0])
    total, gradients = with_gradients(loss_of, jnp.zeros(3, jnp.float32), parts, kernel, labels.shape)
    return tuple(total), gradients


def _backward(weight: float, temperature: float, residual: tuple, d: tuple) -> tuple:
    return *scaled(residual, d[0]), None, None, None


distilled_cross_entropy.defvjp(_forward, _backward)
