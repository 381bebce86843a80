"""Hugging Face's GPT-2: its configurations and state dicts, to vanilla models of ours and back.

What is read becomes one chunk of ordered modules, so that all layers run in one scan; what is written may be any
vanilla model. Reading and writing files is the caller's business, and so are the ids of special tokens
(`bos_token_id`, `eos_token_id`), which belong to the tokenizer.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np

from mom_jax.config import SIDES, ChoiceConfig, DropoutConfig, ModelConfig, Side
from mom_jax.fields import ConfigError, matches, nearest, require
from mom_jax.interop.arrays import PREFIX, Entry, head, read, sublayer, write
from mom_jax.interop.huggingface import BOOKKEEPING, named_architectures
from mom_jax.interop.phases import is_vanilla, layer_names

# The options that say what the model is, with their defaults.
DEFAULTS: dict[str, Any] = {
    "vocab_size": 50257,
    "n_positions": 1024,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "n_inner": None,
    "activation_function": "gelu_new",
    "resid_pdrop": 0.1,
    "embd_pdrop": 0.1,
    "attn_pdrop": 0.1,
    "layer_norm_epsilon": 1e-5,
    "scale_attn_by_inverse_layer_idx": False,
    "tie_word_embeddings": True,
}
# Options that change the model and that we have at one value only.
FIXED = {"scale_attn_weights": True, "add_cross_attention": False}
IGNORED = BOOKKEEPING | {"initializer_range"}  # the weights are there

ARCHITECTURES = ("GPT2LMHeadModel", "GPT2Model")
ACTIVATIONS: dict[Any, Literal["gelu_new", "gelu", "relu"]] = {
    "gelu_new": "gelu_new",
    "gelu_pytorch_tanh": "gelu_new",
    "gelu": "gelu",
    "relu": "relu",
}

# Their names for a sublayer's layer norm and its two linear maps.
SUBLAYERS: dict[Side, tuple[str, str, str]] = {
    "attention": ("ln_1", "attn.c_attn", "attn.c_proj"),
    "ffn": ("ln_2", "mlp.c_fc", "mlp.c_proj"),
}
# The causal mask, which old checkpoints have among their arrays.
MASK = re.compile(r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)")


def config_from_gpt2(options: Mapping[str, Any]) -> ModelConfig:
    """The model that `transformers` builds from the content of a GPT-2's config.json.

    Raises `ConfigError` for another architecture, an unknown option, and a value that we have no model for.
    """
    architecture = options.get("model_type")
    require(architecture == "gpt2", "model_type", architecture, "only 'gpt2' is supported")
    for name in named_architectures(options):
        require(name in ARCHITECTURES, "architectures", name, f"must be one of {', '.join(ARCHITECTURES)}")
    known = {*DEFAULTS, *FIXED, *IGNORED}
    for name, value in options.items():
        require(name in known, str(name), value, f"unknown option of GPT-2; {nearest(str(name), known)}")
        if name in FIXED:
            require(value == FIXED[name], name, value, f"only {FIXED[name]!r} is supported")
    values = DEFAULTS | {name: options[name] for name in DEFAULTS.keys() & options.keys()}
    layers, activation = values["n_layer"], values["activation_function"]
    require(matches(layers, int) and layers >= 1, "n_layer", layers, "must be an integer of at least 1")
    allowed = f"must be one of {', '.join(map(repr, ACTIVATIONS))}"
    require(matches(activation, str) and activation in ACTIVATIONS, "activation_function", activation, allowed)
    scaled = values["scale_attn_by_inverse_layer_idx"]
    require(matches(scaled, bool), "scale_attn_by_inverse_layer_idx", scaled, "must be true or false")
    return ModelConfig(
        vocab_size=values["vocab_size"],
        context_length=values["n_positions"],
        d_model=values["n_embd"],
        num_heads=values["n_head"],
        d_ff=values["n_inner"],
        num_bottom=0,
        num_top=0,
        num_chunks=1,
        num_attn_modules=layers,
        num_ffn_modules=layers,
        num_steps=layers,
        top_k=1,
        attention=ChoiceConfig(choice="ordered"),
        ffn=ChoiceConfig(choice="ordered"),
        activation=ACTIVATIONS[activation],
        layer_norm_epsilon=values["layer_norm_epsilon"],
        tie_embeddings=values["tie_word_embeddings"],
        dropout=DropoutConfig(
            embedding=values["embd_pdrop"], attention=values["attn_pdrop"], residual=values["resid_pdrop"]
        ),
    )


def config_to_gpt2(config: ModelConfig) -> dict[str, Any]:
    """The options with which `transformers` builds a vanilla model of ours.

    Raises `ConfigError` for a Mixture-of-Modules and for a classifier.
    """
    if not is_vanilla(config):
        raise ConfigError(
            "model: a Mixture-of-Modules is no GPT-2 of Hugging Face's; the format 'safetensors' holds it"
        )
    require(config.num_classes is None, "num_classes", config.num_classes, "only None is supported: a language model")
    return {
        "model_type": "gpt2",
        "architectures": [ARCHITECTURES[0]],
        "vocab_size": config.vocab_size,
        "n_positions": config.context_length,
        "n_embd": config.d_model,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_inner": config.d_ff,
        "activation_function": config.activation,
        "resid_pdrop": config.dropout.residual,
        "embd_pdrop": config.dropout.embedding,
        "attn_pdrop": config.dropout.attention,
        "layer_norm_epsilon": config.layer_norm_epsilon,
        "scale_attn_by_inverse_layer_idx": False,
        "tie_word_embeddings": config.tie_embeddings,
        **FIXED,
    }


def _entries(config: ModelConfig) -> Iterator[Entry]:
    """Every array of the GPT-2, layer by layer."""
    d = config.d_model
    yield Entry(f"{PREFIX}wte.weight", (config.vocab_size, d), ("embed", "tokens"))
    yield head(config)
    yield Entry(f"{PREFIX}wpe.weight", (config.context_length, d), ("embed", "positions"))
    for i, (group, index, module) in enumerate(layer_names(config)):
        for side in SIDES:
            norm, first, last = (f"{PREFIX}h.{i}.{name}" for name in SUBLAYERS[side])
            yield from sublayer(config, side, (norm, first, last), (group, index), module)
    yield Entry(f"{PREFIX}ln_f.weight", (d,), ("final_norm", "scale"))
    yield Entry(f"{PREFIX}ln_f.bias", (d,), ("final_norm", "bias"))


def params_from_gpt2(
    arrays: Mapping[str, Any], options: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]] | None = None
) -> dict:
    """The parameters of `config_from_gpt2(options)` from a GPT-2's state dict, whose names may lack `transformer.`.

    A GPT-2 that divides layer i's attention scores by i + 1 gets that much smaller queries. `arrays` may load lazily,
    given the `shapes` of all of them: see mom_jax/interop/arrays.py. Raises `ConfigError` naming every array that is
    missing, surplus or of the wrong shape, and an output head that is not the token embedding although it is tied.
    """
    config = config_from_gpt2(options)
    if shapes is None:
        shapes = {name: np.shape(array) for name, array in arrays.items()}
    shapes = {name: shape for name, shape in shapes.items() if not MASK.fullmatch(name)}
    params = read(arrays, _entries(config), shapes)
    if options.get("scale_attn_by_inverse_layer_idx"):
        attention = params["chunks"][0]["attention"]
        for i in range(config.num_layers):
            attention["qkv_kernel"][i, :, 0] /= i + 1
            attention["qkv_bias"][i, 0] /= i + 1
    return params


def params_to_gpt2(params: Mapping[Any, Any], config: ModelConfig) -> dict[str, np.ndarray]:
    """The state dict of `GPT2LMHeadModel` as `config_to_gpt2(config)` builds it; a tied head is not written.

    Raises `ConfigError` as `config_to_gpt2` does, and naming every array that is missing, surplus or misshapen.
    """
    config_to_gpt2(config)
    return write(params, (entry for entry in _entries(config) if not entry.copy))
