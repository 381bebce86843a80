"""Every backend of attention against float64 on the host: even and odd lengths, padding, packed documents."""

from collections.abc import Iterator
from typing import Any, get_args, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import timing
from benchmarks.gpu.products import ALLOWED, error, poison
from mom_jax import ModelConfig
from mom_jax.attention import View, attend

BACKENDS = tuple(name for name in get_args(get_type_hints(ModelConfig)["attention_kernel"]) if name != "auto")
CASES = ("even", "odd", "padded", "packed")


def oracle(qkv: np.ndarray, visible: np.ndarray, heads: int, d: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Attention over qkv [B, L, 3E] and the gradient of sum(output · d), in float64."""
    batch, length, _ = qkv.shape

    def divided(x: np.ndarray) -> np.ndarray:
        return x.astype(np.float64).reshape(batch, length, heads, -1).transpose(0, 2, 1, 3)

    q, k, v = map(divided, np.split(qkv, 3, -1))
    scale = q.shape[-1] ** -0.5
    logits = np.where(visible[:, None], q @ k.swapaxes(-1, -2) * scale, -np.inf)
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    d = divided(d)
    d_p = d @ v.swapaxes(-1, -2)
    d_logits = p * (d_p - (d_p * p).sum(-1, keepdims=True)) * scale
    parts = d_logits @ k, d_logits.swapaxes(-1, -2) @ q, p.swapaxes(-1, -2) @ d

    def joined(x: np.ndarray) -> np.ndarray:
        return x.transpose(0, 2, 1, 3).reshape(batch, length, -1)

    return joined(p @ v), np.concatenate([joined(part) for part in parts], -1)


def case(name: str, batch: int, length: int) -> tuple[np.ndarray | None, np.ndarray]:
    """(the tokens' segments or None, visible [B, L, L]); in segments padding is one of its own."""
    place = np.arange(length)
    visible = np.broadcast_to(place[None, :] <= place[:, None], (batch, length, length))
    if name in ("even", "odd"):
        return None, visible
    ends = (length // 3, 2 * length // 3 + 1)
    segments = (place[None] >= ends[0]).astype(np.int32) + (place[None] >= ends[1])
    if name == "padded":
        segments = np.where(place[None] >= ends[1], -1, 0).astype(np.int32)
    segments = np.broadcast_to(segments, (batch, length))
    return segments, visible & (segments[:, :, None] == segments[:, None, :])


def rows(small: bool) -> Iterator[dict[str, Any]]:
    batch, length, heads, width = (1, 128, 2, 32) if small else (2, 1024, 12, 64)
    rng = np.random.default_rng()
    for backend in BACKENDS:
        if backend == "splash" and jax.default_backend() != "tpu":
            continue
        for dtype, allowed in ALLOWED.items():
            worst, wrong, refused = 0.0, [], []
            for name in CASES:
                tokens = length - 1 if name == "odd" else length
                config = ModelConfig(d_model=heads * width, num_heads=heads, dtype=dtype, attention_kernel=backend)  # type: ignore[arg-type]
                segments, visible = case(name, batch, tokens)
                view = View(jnp.asarray(visible), None, None if segments is None else jnp.asarray(segments))
                shapes = (batch, tokens, 3 * heads * width), (batch, tokens, heads * width)
                qkv, d = (jnp.asarray(rng.standard_normal(shape, dtype=np.float32), dtype) for shape in shapes)

                def run(qkv: Any, d: Any, view: View, config: ModelConfig = config) -> Any:
                    y, pullback = jax.vjp(lambda qkv: attend(qkv, view, config, key=None, cache=None)[0], qkv)
                    return y, *pullback(d)

                poison(16 if small else 2048)
                try:
                    got = jax.jit(run)(qkv, d, view)
                except Exception as problem:  # whatever a backend makes of a case that it cannot do
                    refused.append(f"{name}: {str(problem).splitlines()[0][:160]}")
                    continue
                wide = (np.asarray(a.astype(jnp.float32)) for a in (qkv, d))
                want = oracle(next(wide), visible, heads, next(wide))
                for part, have, expected in zip(("y", "d_qkv"), got, want, strict=True):
                    off = error(have, expected)
                    if off is None or off > allowed:
                        wrong.append(f"{name}: {part} {'not finite' if off is None else f'{off:.2e}'}")
                    worst = max(worst, off or 0.0)
            row = {"backend": backend, "dtype": dtype, "worst_error": worst, "allowed": allowed, "wrong": wrong}
            seconds = None
            if not any(text.startswith("packed") for text in refused):
                seconds = timing.seconds_of(jax.jit(run), qkv, d, view)
            yield row | {"refused": refused, "packed_seconds": seconds}
