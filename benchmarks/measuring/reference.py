"""The reference work of the benchmarks: one model, one batch, its loss and gradients; and GPT-2 in PyTorch beside it.

A vocabulary of 8192, width 256, 8 heads, inner width 1024, 8 sequences of 256 tokens, float32; an anchor, a chunk of 8
steps over 8 + 8 modules, an anchor; GRU routers of width 256 at temperature 0.2 with SKIP and the authors' weights,
their parameters ten times as large as initially so that routing spreads as after training; balance loss included.
"""

import contextlib
import dataclasses
import functools
import importlib
import importlib.util
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.measuring import timing
from mom_jax import ModelConfig, MoM, RouterConfig
from mom_jax.analysis.cost import train_flops_per_token
from mom_jax.losses import finish
from mom_jax.model import parameters
from mom_jax.routing import Routing
from train.steps.sums import language_model_sums

ROUTER_SCALE = 10


@dataclasses.dataclass(frozen=True)
class Size:
    """V, D, heads, R and the batch B x L; the inner width is 4·D. anchors: below the chunk, and above it. modules: N of
    both sides, and H."""

    vocabulary: int = 8192
    width: int = 256
    heads: int = 8
    router: int = 256
    batch: int = 8
    length: int = 256
    anchors: int = 1
    modules: int = 8


FULL = Size()
GPT2_SMALL = Size(vocabulary=50257, width=768, heads=12, batch=2, length=512, modules=10)
SMALL = Size(vocabulary=64, width=16, heads=2, router=8, batch=2, length=16, anchors=0)


class Work(NamedTuple):
    """A compiled `loss_and_gradients` and its arguments (params, batch)."""

    compiled: timing.Compiled
    params: dict[str, Any]
    batch: dict[str, jax.Array]

    def call(self) -> Any:
        """Runs it to the end: ((loss, routing), gradients)."""
        return jax.block_until_ready(self.compiled.run(self.params, self.batch))

    def routing(self) -> Routing:
        """The routing that a run reports."""
        return self.call()[0][1]


def config(
    size: Size = FULL, *, top_k: int = 1, modules: int | None = None, steps: int | None = None, **fields: Any
) -> ModelConfig:
    """The reference model; `vanilla()` of it with modules == steps has the same depth. fields: of ModelConfig."""
    modules, steps = modules or size.modules, steps or size.modules
    return ModelConfig(
        vocab_size=size.vocabulary,
        context_length=size.length,
        d_model=size.width,
        num_heads=size.heads,
        num_bottom=size.anchors,
        num_top=size.anchors,
        num_attn_modules=modules,
        num_ffn_modules=modules,
        num_steps=steps,
        top_k=top_k,
        router=RouterConfig(weights="renormalised", dim=size.router, temperature=0.2),
        **fields,
    )


def params(config: ModelConfig) -> dict[str, Any]:
    """Initial parameters whose routers' are scaled by ROUTER_SCALE. Not to be changed in place: they are cached."""
    # What parameters do not depend on is made the same, so that one initialisation serves many configurations.
    default = ModelConfig()
    return _params(
        dataclasses.replace(config, top_k=1, num_steps=config.pool_size, remat=default.remat, dispatch=default.dispatch)
    )


@functools.lru_cache(maxsize=2)
def _params(config: ModelConfig) -> dict[str, Any]:
    def initial() -> dict[str, Any]:
        # Another generator than training's, since it compiles several times faster.
        return parameters(MoM(config, rngs=nnx.Rngs(params=jax.random.key(0, impl="rbg"))))

    result = jax.jit(initial)()
    for chunk in result["chunks"].values():
        for name in [name for name in chunk if name.endswith("_router")]:
            chunk[name] = jax.tree.map(lambda x: x * ROUTER_SCALE, chunk[name])
    return result


def tokens(size: Size) -> np.ndarray:
    """[B, L] int32, uniform over the vocabulary."""
    return np.random.default_rng(0).integers(0, size.vocabulary, (size.batch, size.length), dtype=np.int32)


def loss_and_gradients(config: ModelConfig) -> Any:
    """The train step without its optimizer, jitted: (params, batch) -> ((loss, routing), gradients)."""

    def loss(params: dict[str, Any], batch: dict[str, jax.Array]) -> tuple[jax.Array, Routing]:
        sums = language_model_sums(params, batch, config)
        return finish(sums, config).total, sums.routing

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


@functools.cache
def prepare(config: ModelConfig, size: Size) -> Work:
    """That model's work. It is kept: several comparisons share a model, and compiling takes seconds."""
    arguments = params(config), {"tokens": jnp.asarray(tokens(size))}
    return Work(timing.compile_ahead(loss_and_gradients(config), *arguments), *arguments)


def skip_share(routing: Routing) -> dict[str, float]:
    """The share of the choices that are SKIP, by side."""
    return {
        side: float(stats.choices_C[..., -1].sum() / stats.choices_C.sum()) for side, stats in routing.sides().items()
    }


def train_flops(config: ModelConfig, size: Size, skips: Mapping[str, float] | None = None) -> float:
    """FLOPs per token of forward and backward pass. skips: the share of each side's choices that took no module, as
    `skip_share` gives it; without it every choice is a real module."""
    taken = {side: config.top_k * (1 - share) for side, share in (skips or {}).items()}
    return train_flops_per_token(config, size.length, attn_taken=taken.get("attention"), ffn_taken=taken.get("ffn"))


def torch_device() -> tuple[str, Any] | None:
    """(device, dtype) of PyTorch beside JAX: a GPU with bfloat16 where JAX has one and PyTorch too, else the CPU with
    float32; None where PyTorch or transformers are not installed."""
    if not all(importlib.util.find_spec(name) for name in ("torch", "transformers")):
        return None
    torch = importlib.import_module("torch")
    if jax.default_backend() == "gpu" and torch.cuda.is_available():
        return "cuda", torch.bfloat16
    return "cpu", torch.float32


def torch_gpt2(
    size: Size, layers: int, attention: str = "sdpa", *, adamw: bool = False, half: bool = False
) -> timing.Call | None:
    """Forward and backward pass of Hugging Face's GPT-2 on the same tokens; None where it is not installed.

    On a CPU it has as many threads as XLA; on a GPU parameters are float32 and products bfloat16, as ours. It has no
    dropout. A call returns the loss when all is done. attention: `sdpa`, PyTorch's fused one, or `eager`. adamw: with
    a step of PyTorch's fused optimizer. half: on a GPU the parameters are bfloat16 too, so that nothing is cast.
    """
    if (where := torch_device()) is None:
        return None
    device, dtype = where
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch, transformers = importlib.import_module("torch"), importlib.import_module("transformers")
        transformers.logging.set_verbosity_error()
        torch.set_num_threads(timing.threads())
        rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        gpt2 = transformers.GPT2Config(
            vocab_size=size.vocabulary,
            n_positions=size.length,
            n_embd=size.width,
            n_layer=layers,
            n_head=size.heads,
            bos_token_id=0,
            eos_token_id=0,
            attn_implementation=attention,
            use_cache=False,
            **rates,
        )
        torch.manual_seed(0)
        model = transformers.GPT2LMHeadModel(gpt2).to(device, dtype if half else torch.float32)
    model.train()
    ids = torch.from_numpy(tokens(size)).long().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=device == "cuda") if adamw else None
    casting = device == "cuda" and not half

    def call() -> Any:
        model.zero_grad(set_to_none=True)
        with torch.autocast(device, dtype=dtype) if casting else contextlib.nullcontext():
            loss = model(ids, labels=ids).loss
        loss.backward()
        if optimizer is not None:
            optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()
        return loss.detach()

    return call
