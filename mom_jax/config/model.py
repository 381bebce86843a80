"""`ModelConfig`: everything that defines a model, checked when it is made."""

import dataclasses
from typing import Any, Literal

from mom_jax.config.choice import SIDES, ChoiceConfig, Side
from mom_jax.config.consistency import check_side
from mom_jax.config.parts import BalanceConfig, DropoutConfig
from mom_jax.config.router import RouterConfig
from mom_jax.fields import MOST, check_types, matches, require, require_at_most

# Layers and steps become parts of a program: no compiler takes more.
MOST_LAYERS = 10_000

# What a vanilla model has no use for, besides its sizes.
_OF_ROUTING = ("router", "skip", "weighted_qkv", "balance", "z_loss", "capacity_loss", "capacity_factor")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A Mixture-of-Modules model; `ModelConfig.official` has the official code's behaviour, `vanilla` phase 1's model.

    The layers, bottom to top: embeddings; `num_bottom` anchors (plain GPT-2 layers); `num_chunks` chunks of
    `num_steps` assembly steps over a pool of `num_attn_modules` and `num_ffn_modules` modules, each chunk followed by
    an anchor if `anchor_after_chunk`; `num_top` anchors; a layer norm; the head.

    Attributes:
        vocab_size: V; 0 stands for as many as the data's tokenizer has, which the programs fill in.
        context_length: the longest sequence; there are so many learned positions.
        d_model: D, the width of the residual stream.
        num_heads: heads of every attention.
        d_ff: F, the inner width of every FFN; None means 4·d_model.
        module_d_ff: the inner width of an FFN module in a pool, which must divide d_ff; None: d_ff. G = d_ff /
            module_d_ff narrow modules do the work of one layer's FFN (fine-grained experts: DeepSeekMoE, arXiv
            2401.06066; MoEUT, arXiv 2405.16039). A vanilla layer is cut into G modules without changing what they add
            up to (`interop.phases.from_vanilla`), and module j·G + g is a part of layer j.
        num_bottom: anchors below the chunks.
        num_top: anchors above the chunks.
        num_chunks: S.
        anchor_after_chunk: whether an anchor follows each chunk.
        num_attn_modules: attention modules in a chunk's pool.
        num_ffn_modules: FFN modules in a chunk's pool, narrow ones with `module_d_ff`.
        num_steps: H, assembly steps per chunk.
        top_k: K, modules that a token takes at a step on each side, unless the side has a `top_k` of its own.
        skip: whether routers have a class SKIP that does nothing.
        attention: what a step's attention may choose.
        ffn: what a step's FFN may choose.
        router: how both sides' routers score.
        weighted_qkv: multiply queries, keys and values by the modules' weights too.
        balance: the loss, or the bias, that spreads the choices.
        z_loss: the factor of the router z-loss.
        capacity_loss: the factor of the loss that teaches routers with a `capacity` to tell by the token alone who is
            within it: the cross-entropy of sigmoid(best module - SKIP), logits (Raposo et al., section 3.5).
        activation: of the FFNs, by the names of Hugging Face.
        layer_norm_epsilon: of every layer norm.
        tie_embeddings: the head of the language model is the token embedding; else a matrix of its own.
        num_classes: builds a sequence-classification head of so many classes.
        dropout: rates, in training only.
        dtype: of the computation; parameters, router logits and softmax are float32.
        remat: what the backward pass recomputes. `none`; `dots`: all but matrix products (docs/results.md has the
            measurement that made it the default); `full`: assembly steps and anchors.
        dispatch: the backend of the routed computation (mom_jax/dispatch); `auto` goes by platform.
        capacity_factor: rows that a module takes in one step at most, as a multiple of an even share of all choices;
            what does not fit is dropped. None: dropless. With a factor `dispatch` has no say.
        exchange_room: on a mesh that divides pools along `module`: rows that a device takes at a time, as a multiple of
            an even share; what does not fit takes another round. Training sets it from `mesh.room`.
        attention_kernel: the backend of attention (mom_jax/attention); `auto` goes by platform.
    """

    vocab_size: int = 50257
    context_length: int = 1024
    d_model: int = 768
    num_heads: int = 12
    d_ff: int | None = None
    module_d_ff: int | None = None
    num_bottom: int = 1
    num_top: int = 1
    num_chunks: int = 1
    anchor_after_chunk: bool = False
    num_attn_modules: int = 4
    num_ffn_modules: int = 4
    num_steps: int = 8
    top_k: int = 1
    skip: bool = True
    attention: ChoiceConfig = ChoiceConfig()
    ffn: ChoiceConfig = ChoiceConfig()
    router: RouterConfig = RouterConfig()
    weighted_qkv: bool = False
    balance: BalanceConfig = BalanceConfig()
    z_loss: float = 0.0
    capacity_loss: float = 0.01
    activation: Literal["gelu_new", "gelu", "relu"] = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    tie_embeddings: bool = True
    num_classes: int | None = None
    dropout: DropoutConfig = DropoutConfig()
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: Literal["none", "dots", "full"] = "dots"
    dispatch: Literal["auto", "dense", "blocked", "ragged", "megablox", "triton", "mosaic"] = "auto"
    capacity_factor: float | None = None
    exchange_room: float = 1.5
    attention_kernel: Literal["auto", "plain", "blocked", "splash", "cudnn", "triton"] = "auto"

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("context_length", "d_model", "num_heads", "num_attn_modules", "num_ffn_modules"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
        for name in ("num_steps", "top_k"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
        for name in ("vocab_size", "num_bottom", "num_top", "num_chunks", "z_loss", "capacity_loss"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "must be at least 0")
        for name in ("d_ff", "module_d_ff", "num_classes"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, value, "must be at least 1")
        sizes = (
            "vocab_size",
            "context_length",
            "d_model",
            "d_ff",
            "module_d_ff",
            "num_attn_modules",
            "num_ffn_modules",
            "num_classes",
        )
        require_at_most(self, MOST, *sizes, "top_k")
        require_at_most(self, MOST_LAYERS, "num_bottom", "num_top", "num_chunks", "num_steps")
        factor = self.capacity_factor
        require(factor is None or factor > 0, "capacity_factor", factor, "must be positive or None")
        require(self.exchange_room > 0, "exchange_room", self.exchange_room, "must be positive")
        require(self.layer_norm_epsilon > 0, "layer_norm_epsilon", self.layer_norm_epsilon, "must be positive")
        divisible = self.d_model % self.num_heads == 0
        require(divisible, "num_heads", self.num_heads, f"must divide d_model={self.d_model}")
        narrow = self.module_d_ff
        divides = narrow is None or self.inner_width % narrow == 0
        require(divides, "module_d_ff", narrow, f"must divide d_ff={self.inner_width}")
        for side in SIDES:
            check_side(self, side)

    # Derived sizes.

    @property
    def inner_width(self) -> int:
        """F."""
        return self.d_ff or 4 * self.d_model

    @property
    def module_width(self) -> int:
        """The inner width of an FFN module in a pool."""
        return self.module_d_ff or self.inner_width

    @property
    def head_dim(self) -> int:
        """d, the width of a head."""
        return self.d_model // self.num_heads

    @property
    def pool_size(self) -> int:
        """M: the vanilla layers that a chunk's pool is made of."""
        return max(self.layers("attention"), self.layers("ffn"))

    @property
    def num_layers(self) -> int:
        """The layers of the vanilla counterpart."""
        return self.num_bottom + self.num_chunks * (self.pool_size + self.anchor_after_chunk) + self.num_top

    @property
    def depth(self) -> int:
        """The layers that a token passes through."""
        return self.num_bottom + self.num_chunks * (self.num_steps + self.anchor_after_chunk) + self.num_top

    def modules(self, side: Side) -> int:
        """N of that side."""
        return self.num_attn_modules if side == "attention" else self.num_ffn_modules

    def grain(self, side: Side) -> int:
        """G: how many of that side's modules do the work of one vanilla layer's sublayer."""
        return self.inner_width // self.module_width if side == "ffn" else 1

    def layers(self, side: Side) -> int:
        """The vanilla layers of whose sublayers that side's modules are made: module m is a part of layer m // G."""
        return -(-self.modules(side) // self.grain(side))

    def classes(self, side: Side) -> int:
        """C of that side's router; SKIP, where there is one, is the last class."""
        most = max(self.num_attn_modules, self.num_ffn_modules)
        modules = {"own": self.modules(side), "max": most, "ffn": self.num_ffn_modules}
        return modules[self.router.classes] + self.skip

    def choices(self, side: Side) -> int:
        """How many classes a token takes at each step on that side."""
        return self.modules(side) if self.router.all_modules else self.side_top_k(side)

    def side_top_k(self, side: Side) -> int:
        """K of that side, which with `router.all_modules` has no say."""
        own: int | None = getattr(self, side).top_k
        return self.top_k if own is None else own

    def weights(self, side: Side) -> Literal["renormalised", "probability", "raw"]:
        """`router.weights` with `auto` resolved for that side's K."""
        if self.router.weights != "auto":
            return self.router.weights
        if self.router.scoring == "raw":
            return "raw"
        alone = self.router.scoring == "sigmoid" or self.side_top_k(side) == 1
        return "probability" if alone else "renormalised"

    def kind(self, side: Side) -> Literal["routed", "ordered", "shared"]:
        """How that side's steps pick modules: by a router; each its own; or the only one there is."""
        if self.modules(side) == 1:
            return "shared"
        return "ordered" if getattr(self, side).choice == "ordered" else "routed"

    def schedule(self, side: Side) -> tuple[int, ...]:
        """The module of its own that each step has on that side; N or more for a step that has none. Of modules that
        are narrower than a layer's FFN: the layer, whose G modules are the step's own."""
        given: tuple[int, ...] | None = getattr(self, side).schedule
        return tuple(range(self.num_steps)) if given is None else given

    @property
    def routes_values(self) -> bool:
        """Whether attention's values and outputs alone are routed, and its queries and keys are each step's own."""
        return self.attention.routes == "values"

    @property
    def routed_sides(self) -> tuple[Side, ...]:
        """The sides on which tokens choose modules; none without chunks."""
        return tuple(side for side in SIDES if self.num_chunks and self.kind(side) == "routed")

    @property
    def has_capacity(self) -> bool:
        """Whether some choices depend on the whole sequence."""
        return any(getattr(self, side).capacity is not None for side in self.routed_sides)

    @property
    def has_exit(self) -> bool:
        """Whether tokens may leave a chunk."""
        return any(getattr(self, side).exit for side in self.routed_sides)

    # Related configurations.

    @classmethod
    def official(cls, **fields: Any) -> "ModelConfig":
        """A configuration that behaves as the authors' code: `fields` and the values that the code fixes.

        `top_k` is cut to the number of classes, as there.
        """
        router: RouterConfig = fields.pop("router", RouterConfig())
        router = dataclasses.replace(
            router,
            weights="raw" if router.scoring == "raw" else "renormalised",
            classes="ffn" if router.kind in ("mlp", "gru_dev") else "max",
            noise_in_evaluation=True,
        )
        balance = dataclasses.replace(
            fields.pop("balance", BalanceConfig()), softmax_again=True, needs_routed_attention=True, over="micro_batch"
        )
        top_k = fields.pop("top_k", cls.top_k)
        config = cls(**fields, router=router, balance=balance, top_k=1)
        return dataclasses.replace(config, top_k=min(top_k, config.classes("ffn")) if matches(top_k, int) else top_k)

    def vanilla(self) -> "ModelConfig":
        """Phase 1's counterpart: the plain transformer whose layers become this model's modules and anchors. What means
        nothing there has its default, so that models that differ in it alone share phase 1."""
        size, ordered = self.pool_size, ChoiceConfig(choice="ordered")
        plain: dict[str, Any] = {name: getattr(ModelConfig, name) for name in _OF_ROUTING}
        plain |= {"num_attn_modules": size, "num_ffn_modules": size, "num_steps": size}
        return dataclasses.replace(self, **plain, module_d_ff=None, top_k=1, attention=ordered, ffn=ordered)

    def causal(self) -> "ModelConfig":
        """The model without the capacities of its sides: a token takes SKIP where that is its best class, and what it
        does depends on no later token."""
        sides = {side: dataclasses.replace(getattr(self, side), capacity=None) for side in SIDES}
        return dataclasses.replace(self, **sides)

    def for_inference(self) -> "ModelConfig":
        """The model as it decodes and is evaluated on tasks: causal, no choice is dropped, whatever shares a batch with
        it, and attention takes sequences of any length (`splash` does not)."""
        return dataclasses.replace(self.causal(), capacity_factor=None, attention_kernel="auto")

    def at_step(self, step: int) -> "ModelConfig":
        """This model with its annealed preferences fixed at their strength after `step` training steps."""

        def fix(side: Side) -> ChoiceConfig:
            choice: ChoiceConfig = getattr(self, side)
            if not choice.anneal_steps:
                return choice
            names = [name for name in ("preference", "skip_preference") if getattr(choice, name)]
            rest = float(choice.remaining(step, self.classes(side))) if names else 0.0
            strengths = {name: getattr(choice, name) * rest for name in names}
            return dataclasses.replace(choice, **strengths, anneal_steps=0)

        return dataclasses.replace(self, attention=fix("attention"), ffn=fix("ffn"))
