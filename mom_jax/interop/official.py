"""The authors' PyTorch code (gzhch/Mixture-of-Modules): its configurations and state dicts, to ours and back.

`OPTIONS` is the table for whoever knows the authors' options. Beyond it:
- `depth_per_chunk` None means int(num_ffn · depth_multiplier) steps.
- `router_type` is read by what it contains, as their code does (`_router_type`): any of `softmax_dev_gru` and
  `gru_dev_softmax` will do; written are the names of `ROUTER_TYPES`.
- What their code fixes and we let one choose (normalisation of the top-k weights, the router's classes, the balance
  loss's second softmax, noise in evaluation) is set by `ModelConfig.official`.
- `n_layer` only scales their initialisation (and must reach the number of their blocks): it is not read, and written as
  `ModelConfig.num_layers`.
- `dtype`, `remat`, `dispatch` and `attention_kernel` say how we compute, not what: they are not written, and read as
  their defaults.

Reading and writing files is the caller's business.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from mom_jax.config import BalanceConfig, DropoutConfig, ModelConfig, RouterConfig, Side
from mom_jax.fields import MOST, matches, nearest, require
from mom_jax.interop.arrays import PREFIX, Entry, Path, head, read, sublayer, write
from mom_jax.interop.huggingface import BOOKKEEPING, named_architectures

# Configurations.


class Option(NamedTuple):
    """Where one of the authors' options is found in `ModelConfig`.

    fields: our fields. default: theirs, for a configuration that leaves the option out. values: their values with the
    values of our fields, where the two differ or where only some are allowed.
    """

    fields: tuple[str, ...]
    default: Any
    values: Mapping[Any, tuple[Any, ...]] | None = None


ROUTER_TYPES = {
    "naive": ("mlp", "raw"),
    "naive_softmax": ("mlp", "softmax"),
    "gru": ("gru", "raw"),
    "gru_softmax": ("gru", "softmax"),
    "gru_dev": ("gru_dev", "raw"),
    "gru_dev_softmax": ("gru_dev", "softmax"),
    "gru_random": ("gru_random", "raw"),
    "gru_random_softmax": ("gru_random", "softmax"),
}

OPTIONS = {
    "vocab_size": Option(("vocab_size",), 50257),
    "n_positions": Option(("context_length",), 1024),
    "n_embd": Option(("d_model",), 768),
    "n_head": Option(("num_heads",), 12),
    "n_inner": Option(("d_ff",), None),
    "num_bottom_layers": Option(("num_bottom",), 1),
    "num_top_layers": Option(("num_top",), 2),
    "chunks": Option(("num_chunks",), 4),
    "require_anchor_layer": Option(("anchor_after_chunk",), True),
    "num_attn": Option(("num_attn_modules",), 8),
    "num_ffn": Option(("num_ffn_modules",), 8),
    "depth_per_chunk": Option(("num_steps",), None),
    "routing_top_k": Option(("top_k",), 1),
    "enable_pause": Option(("skip",), True),
    "weighted_qkv": Option(("weighted_qkv",), False),
    "router_type": Option(("router.kind", "router.scoring"), "naive", ROUTER_TYPES),
    "router_dim": Option(("router.dim",), 256),
    "router_softmax_temperature": Option(("router.temperature",), 1.0),
    "use_ste": Option(("router.straight_through",), False),
    "routing_all_possible_path": Option(("router.all_modules",), False),
    "router_aux_loss_coef": Option(("balance.weight",), 0.01),
    "depthwise_bal_loss": Option(("balance.kind",), False, {False: ("global",), True: ("depthwise",)}),
    "activation_function": Option(
        ("activation",), "gelu_new", {name: (name,) for name in ("gelu_new", "gelu", "relu")}
    ),
    "layer_norm_epsilon": Option(("layer_norm_epsilon",), 1e-5),
    "embd_pdrop": Option(("dropout.embedding",), 0.1),
    "attn_pdrop": Option(("dropout.attention",), 0.1),
    "resid_pdrop": Option(("dropout.residual",), 0.1),
    "num_labels": Option(("num_classes",), None),
}

# Options that change the model and that we have at one value only.
FIXED = {
    "initializer_range": 0.02,
    "scale_attn_weights": True,
    "tie_word_embeddings": True,
    "add_cross_attention": False,
}

# Read above under another name, or without effect in the authors' code.
IGNORED = BOOKKEEPING | {
    "depth_multiplier",
    "bind_ffn_attn",
    "n_layer",
    "output_router_logits",
    "scale_attn_by_inverse_layer_idx",
}

HOW_NOT_WHAT = ("dtype", "remat", "dispatch", "exchange_room", "attention_kernel", "balance.over", "router.score_init")


def config_from_official(official: Mapping[str, Any]) -> ModelConfig:
    """The model that the authors' code builds from the configuration `official`.

    Raises `ConfigError` for an unknown option and for a value that we, or their code, have no model for.
    """
    known = {*OPTIONS, *FIXED, *IGNORED}
    for name, value in official.items():
        require(name in known, str(name), value, f"unknown option of the authors' code; {nearest(str(name), known)}")
        if name in FIXED:
            require(value == FIXED[name], name, value, f"only {FIXED[name]!r} is supported")
    values = {name: official.get(name, option.default) for name, option in OPTIONS.items()}
    if official.get("bind_ffn_attn"):  # all that their code does with it
        allowed = f"with bind_ffn_attn must equal num_ffn={values['num_ffn']!r}"
        require(values["num_attn"] == values["num_ffn"], "num_attn", values["num_attn"], allowed)
    if values["depth_per_chunk"] is None:
        modules, multiplier = values["num_ffn"], official.get("depth_multiplier", 4)
        require(matches(modules, int) and modules <= MOST, "num_ffn", modules, "must be an integer")
        good = matches(multiplier, float) and abs(multiplier) <= MOST
        require(good, "depth_multiplier", multiplier, "must be a number")
        values["depth_per_chunk"] = int(modules * multiplier)
    values["router_type"] = _router_type(values["router_type"])
    values["num_labels"] = _num_labels(official)

    groups: dict[str, dict[str, Any]] = {"": {}, "router": {}, "balance": {}, "dropout": {}}
    for name, option in OPTIONS.items():
        value, choices = values[name], option.values
        if choices is not None:
            good = isinstance(value, str | bool) and value in choices
            require(good, name, value, f"must be one of {', '.join(map(repr, choices))}")
        for field, ours in zip(option.fields, (value,) if choices is None else choices[value], strict=True):
            group, _, leaf = field.rpartition(".")
            groups[group][leaf] = ours
    return ModelConfig.official(
        **groups[""],
        router=RouterConfig(**groups["router"]),
        balance=BalanceConfig(**groups["balance"]),
        dropout=DropoutConfig(**groups["dropout"]),
    )


def _router_type(value: Any) -> str:
    """The name in `ROUTER_TYPES` of the router that their code builds: by the first of `naive`, `dev` and `gru` that
    `router_type` contains, with softmax, and but for `naive` with noise, where it contains these words.

    Raises `ConfigError` for what their code has no router for or fails with, and for GRU-dev with noise.
    """
    kind = next((kind for kind in ("naive", "dev", "gru") if kind in value), None) if isinstance(value, str) else None
    require(
        kind is not None, "router_type", value, "must contain 'naive', 'dev' or 'gru', as the authors' code reads it"
    )
    softmax, noise = "_softmax" if "softmax" in value else "", "random" in value
    if kind == "dev":
        require(not noise, "router_type", value, "GRU-dev with noise is not supported: 'dev' or 'random', not both")
        fails = "sigmoid" in value and not softmax
        require(
            not fails, "router_type", value, "fails in the authors' code, whose sigmoid of GRU-dev cannot be called"
        )
    names = {"naive": "naive", "dev": "gru_dev", "gru": "gru_random" if noise else "gru"}
    return f"{names[kind or '']}{softmax}"


def _num_labels(official: Mapping[str, Any]) -> int | None:
    """Classes of the classification head. Hugging Face writes them as `id2label`, and only if they are not 2."""
    classifier = any(name.endswith("ForSequenceClassification") for name in named_architectures(official))
    labels = official.get("id2label")
    require(isinstance(labels, dict | None), "id2label", labels, "must be a table of labels")
    return official.get("num_labels", len(labels or (0, 1)) if classifier else None)


def config_to_official(config: ModelConfig) -> dict[str, Any]:
    """The configuration with which the authors' code builds the same model.

    Raises `ConfigError` naming the first field whose value their code does not have.
    """
    official: dict[str, Any] = {}
    for name, option in OPTIONS.items():
        ours = tuple(_get(config, field) for field in option.fields)
        if option.values is None:
            official[name] = ours[0]
        else:
            inverse = {value: key for key, value in option.values.items()}
            allowed = f"the authors' code has only {'; '.join(', '.join(map(str, theirs)) for theirs in inverse)}"
            require(ours in inverse, ", ".join(option.fields), ", ".join(map(str, ours)), allowed)
            official[name] = inverse[ours]
    if config.num_classes is None:
        del official["num_labels"]
    official["n_layer"] = config.num_layers
    # Reading it back tells what their code would do: where that is not `config`, they have no such option.
    _check_same(config, config_from_official(official))
    return official


def _get(config: Any, path: str) -> Any:
    for name in path.split("."):
        config = getattr(config, name)
    return config


def _check_same(config: Any, theirs: Any, path: str = "") -> None:
    for field in dataclasses.fields(config):
        name, mine, other = path + field.name, getattr(config, field.name), getattr(theirs, field.name)
        if dataclasses.is_dataclass(mine):
            _check_same(mine, other, f"{name}.")
        elif name not in HOW_NOT_WHAT:
            require(mine == other, name, mine, f"the authors' code has only {other!r} for this configuration")


# Parameters.

# The authors' names for a sublayer, for its layer norm and for its two linear maps.
SUBLAYERS: dict[Side, tuple[str, tuple[str, str, str]]] = {
    "attention": ("mot_attn", ("attention_layernorm", "c_attn", "c_proj")),
    "ffn": ("mot_ffn", ("ffn_layernorm", "c_fc", "c_proj")),
}


def _entries(config: ModelConfig) -> Iterator[Entry]:
    """Every array of the authors' model, the tied output head apart."""
    require(config.tie_embeddings, "tie_embeddings", config.tie_embeddings, "the authors' code has only True")
    d = config.d_model
    yield Entry(f"{PREFIX}wte.weight", (config.vocab_size, d), ("embed", "tokens"))
    yield Entry(f"{PREFIX}wpe.weight", (config.context_length, d), ("embed", "positions"))
    block = 0
    for i in range(config.num_bottom):
        yield from _layer_entries(config, block, ("bottom", i))
        block += 1
    for s in range(config.num_chunks):
        yield from _chunk_entries(config, block, s)
        block += 1
        if config.anchor_after_chunk:
            yield from _layer_entries(config, block, ("anchors", s))
            block += 1
    for i in range(config.num_top):
        yield from _layer_entries(config, block, ("top", i))
        block += 1
    yield Entry(f"{PREFIX}ln_f.weight", (d,), ("final_norm", "scale"))
    yield Entry(f"{PREFIX}ln_f.bias", (d,), ("final_norm", "bias"))
    if config.num_classes:
        yield Entry("score.weight", (config.num_classes, d), ("head", "kernel"), transposed=True)


def _layer_entries(config: ModelConfig, block: int, path: Path) -> Iterator[Entry]:
    for side in SUBLAYERS:
        yield from sublayer(config, side, _names(side, block), path)


def _chunk_entries(config: ModelConfig, block: int, chunk: int) -> Iterator[Entry]:
    path = ("chunks", chunk)
    for side, (prefix, _) in SUBLAYERS.items():
        modules = config.modules(side)
        for m in range(modules):
            # A pool of one is an ordinary sublayer there: its names carry no index.
            yield from sublayer(config, side, _names(side, block, f".{m}" if modules > 1 else ""), path, m)
        if config.kind(side) == "routed":
            yield from _router_entries(config, side, f"{PREFIX}h.{block}.{prefix}.router", (*path, f"{side}_router"))


def _names(side: Side, block: int, suffix: str = "") -> tuple[str, str, str]:
    prefix, (norm, first, last) = SUBLAYERS[side]
    before = f"{PREFIX}h.{block}.{prefix}"
    return f"{before}.{norm}{suffix}", f"{before}.{first}{suffix}", f"{before}.{last}{suffix}"


def _router_entries(config: ModelConfig, side: Side, name: str, path: Path) -> Iterator[Entry]:
    d, r, c, kind = config.d_model, config.router.dim, config.classes(side), config.router.kind
    gates = 4 if kind == "gru_random" else 3
    linears = {"x2h": ("input", gates * r, d), "h2h": ("state", gates * r, r), "router": ("score", c, r)}
    if kind == "mlp":
        linears = {"router.0": ("hidden", r, d), "router.2": ("score", c, r)}
    for theirs, (ours, fan_out, fan_in) in linears.items():
        yield Entry(f"{name}.{theirs}.weight", (fan_out, fan_in), (*path, f"{ours}_kernel"), transposed=True)
        yield Entry(f"{name}.{theirs}.bias", (fan_out,), (*path, f"{ours}_bias"))


def params_from_official(
    arrays: Mapping[str, Any], config: ModelConfig, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> dict:
    """Our parameters from the authors' state dict, whose names may lack the prefix `transformer.`.

    Raises `ConfigError` naming every array that is missing, surplus or of the wrong shape, and an output head that is
    not the token embedding. `shapes` and lazy `arrays` as in mom_jax/interop/arrays.py.
    """
    embedding, *rest = _entries(config)
    return read(arrays, [embedding, head(config), *rest], shapes)


def params_to_official(params: Mapping[Any, Any], config: ModelConfig) -> dict[str, np.ndarray]:
    """The authors' state dict of our parameters (or of gradients), the tied head `lm_head.weight` included.

    Raises `ConfigError` naming every array that is missing, surplus or of the wrong shape.
    """
    heads = () if config.num_classes else (head(config),)
    return write(params, (*_entries(config), *heads))
