"""Hugging Face's GPT-2s, to our vanilla models and back: stored ones, and live ones where `transformers` is there."""

import dataclasses
import json
import tracemalloc
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import SMALL, random_params

import mom_jax as mom
from mom_jax.fields import ConfigError
from mom_jax.interop.gpt2 import config_from_gpt2, config_to_gpt2, params_from_gpt2, params_to_gpt2
from mom_jax.interop.phases import from_vanilla, is_vanilla

FOLDER = Path(__file__).parents[1] / "goldens" / "gpt2"
NAMES = sorted(path.stem for path in FOLDER.glob("*.npz"))
TOLERANCE = 1e-5  # of logits up to about 5

TINY = {"model_type": "gpt2", "vocab_size": 7, "n_positions": 5, "n_embd": 4, "n_head": 2, "n_layer": 2}


def load(name):
    """(config.json's content, state dict, {ids, logits, greedy})."""
    options = json.loads((FOLDER / f"{name}.json").read_text())["config"]
    with np.load(FOLDER / f"{name}.npz") as file:
        arrays = dict(file)
    state = {key.removeprefix("state/"): a for key, a in arrays.items() if key.startswith("state/")}
    return options, state, {key: a for key, a in arrays.items() if not key.startswith("state/")}


def tiny_state(**options):
    """A state dict for TINY."""
    config = config_from_gpt2(TINY | options)
    return params_to_gpt2(jax.tree.map(np.asarray, random_params(config)), config)


def logits(config, params, ids):
    return np.asarray(mom.with_parameters(config, params)(jnp.asarray(ids)).logits)


def assert_identical(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


# Stored models.


def test_the_stored_models_cover_what_there_is():
    options = [load(name)[0] for name in NAMES]
    assert {o["activation_function"] for o in options} == {"gelu_new", "gelu_pytorch_tanh", "gelu", "relu"}
    assert {o["n_layer"] for o in options} >= {1, 2, 3}
    for name in ("tie_word_embeddings", "scale_attn_by_inverse_layer_idx", "n_inner", "n_head", "layer_norm_epsilon"):
        assert len({o[name] for o in options}) > 1, name


@pytest.mark.parametrize("name", NAMES)
def test_logits_and_greedy_tokens_are_theirs(name):
    options, state, stored = load(name)
    config, params = config_from_gpt2(options), params_from_gpt2(state, options)
    assert is_vanilla(config)
    assert config.num_layers == config.num_steps == options["n_layer"]
    np.testing.assert_allclose(logits(config, params, stored["ids"]), stored["logits"], rtol=0, atol=TOLERANCE)
    model, steps = mom.with_parameters(config, params), stored["greedy"].shape[1]
    assert mom.generate(model, stored["ids"].tolist(), steps, temperature=0) == stored["greedy"].tolist()


@pytest.mark.parametrize("name", NAMES)
def test_what_is_written_is_what_was_read(name):
    options, state, _ = load(name)
    config = config_from_gpt2(options)
    written = config_to_gpt2(config)
    json.dumps(written)
    assert config_from_gpt2(written) == config
    same = written.keys() - {"scale_attn_by_inverse_layer_idx"}
    aliases = {"gelu_pytorch_tanh": "gelu_new"}
    assert {k: written[k] for k in same} == {k: aliases.get(str(options[k]), options[k]) for k in same}
    back = params_to_gpt2(params_from_gpt2(state, options), config)
    if config.tie_embeddings:
        state.pop("lm_head.weight")  # which `transformers` does not write either
    if options["scale_attn_by_inverse_layer_idx"]:
        assert not written["scale_attn_by_inverse_layer_idx"]
        d = config.d_model
        for i in range(config.num_layers):
            for end in ("weight", "bias"):
                state[f"transformer.h.{i}.attn.c_attn.{end}"][..., :d] /= i + 1
    assert_identical(back, state)


# Names and layouts.


def test_where_arrays_go():
    state = tiny_state()
    params = params_from_gpt2(state, TINY)
    chunk = params["chunks"][0]
    assert set(params) == {"embed", "chunks", "final_norm"}
    assert set(chunk) == {"attention", "ffn"}
    qkv = chunk["attention"]["qkv_kernel"]
    assert qkv.shape == (2, 4, 3, 4)
    np.testing.assert_array_equal(qkv[1].reshape(4, 12), state["transformer.h.1.attn.c_attn.weight"])
    np.testing.assert_array_equal(chunk["attention"]["norm_scale"][1], state["transformer.h.1.ln_1.weight"])
    np.testing.assert_array_equal(chunk["ffn"]["norm_bias"][0], state["transformer.h.0.ln_2.bias"])
    np.testing.assert_array_equal(chunk["ffn"]["out_kernel"][1], state["transformer.h.1.mlp.c_proj.weight"])


def test_names_without_prefix_and_masks_among_the_arrays():
    """As OpenAI's checkpoints are stored."""
    state = tiny_state()
    want = params_from_gpt2(state, TINY)
    old = {name.removeprefix("transformer."): array for name, array in state.items()}
    for i in range(2):
        old |= {f"h.{i}.attn.bias": np.ones((1, 1, 5, 5)), f"h.{i}.attn.masked_bias": np.array(-1e4)}
    for head in ({}, {"lm_head.weight": old["wte.weight"]}):
        jax.tree.map(np.testing.assert_array_equal, params_from_gpt2(old | head, TINY), want)


def test_half_precision_becomes_float32():
    half = {name: array.astype(np.float16) for name, array in tiny_state().items()}
    params = params_from_gpt2(half, TINY)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(params["embed"]["tokens"], half["transformer.wte.weight"].astype(np.float32))


def test_defaults_are_those_of_gpt2():
    config = config_from_gpt2({"model_type": "gpt2"})
    assert (config.vocab_size, config.context_length, config.d_model) == (50257, 1024, 768)
    assert (config.num_layers, config.num_heads, config.inner_width) == (12, 12, 3072)
    assert (config.activation, config.dropout.attention, config.tie_embeddings) == ("gelu_new", 0.1, True)


@pytest.mark.parametrize("tie", [True, False])
def test_any_vanilla_model_is_written(tie):
    """Anchors and two chunks, read back as one chunk: the layers are in the same order."""
    config = dataclasses.replace(
        SMALL, num_bottom=1, num_top=1, num_chunks=2, anchor_after_chunk=True, activation="relu", tie_embeddings=tie
    ).vanilla()
    params, ids = jax.tree.map(np.asarray, random_params(config)), np.arange(8)[None]
    options, state = config_to_gpt2(config), params_to_gpt2(params, config)
    assert options["n_layer"] == 10
    np.testing.assert_allclose(
        logits(config_from_gpt2(options), params_from_gpt2(state, options), ids),
        logits(config, params, ids),
        rtol=0,
        atol=1e-4,
    )


def test_phase_two_begins_with_it():
    """Two GPT-2 layers become an anchor and the first module, and back."""
    config = config_from_gpt2(TINY)
    mixture = dataclasses.replace(
        SMALL, vocab_size=7, context_length=5, d_model=4, d_ff=None, num_bottom=1, num_attn_modules=1, num_ffn_modules=1
    )
    source = params_from_gpt2(tiny_state(), TINY)
    result, messages = from_vanilla(config, source, mixture, random_params(mixture))
    assert messages == []
    np.testing.assert_array_equal(
        result["bottom"][0]["ffn"]["in_kernel"], source["chunks"][0]["ffn"]["in_kernel"][0], strict=True
    )


# Streaming.


class Lazy(Mapping):
    """Arrays of 1 MiB and less that exist once they are asked for."""

    def __init__(self, shapes):
        self.shapes, self.asked = shapes, []

    def __getitem__(self, name):
        self.asked.append(name)
        return np.ones(self.shapes[name], np.float32)

    def __iter__(self):
        return iter(self.shapes)

    def __len__(self):
        return len(self.shapes)


def shapes_of(options):
    state = {name: array.shape for name, array in tiny_state(**options).items()}
    return state | {"lm_head.weight": state["transformer.wte.weight"]}


def test_arrays_are_loaded_once_and_in_little_more_memory_than_they_take():
    options = {"n_embd": 64, "n_layer": 24, "vocab_size": 300}
    lazy = Lazy(shapes_of(options) | {"transformer.h.3.attn.bias": (1, 1, 5, 5)})
    tracemalloc.start()
    params = params_from_gpt2(lazy, TINY | options, lazy.shapes)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sorted(lazy.asked) == sorted(lazy.shapes.keys() - {"transformer.h.3.attn.bias"})
    assert peak < 1.1 * sum(leaf.nbytes for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("change", [{"transformer.h.1.ln_2.bias": (5,)}, {"surplus": (1,)}, {"lm_head.weight": (7, 5)}])
def test_nothing_is_loaded_where_names_or_shapes_are_wrong(change):
    lazy = Lazy(shapes_of({}) | change)
    with pytest.raises(ConfigError):
        params_from_gpt2(lazy, TINY, lazy.shapes)
    assert lazy.asked == []


# What cannot be.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_type": "llama", "hidden_size": 64}, r"^model_type='llama': only 'gpt2' is supported$"),
        ({"model_type": None}, r"^model_type=None: only 'gpt2' is supported$"),
        ({"architectures": ["GPT2ForSequenceClassification"]}, r"^architectures='GPT2ForSequenceClassification': must"),
        ({"scale_attn_weights": False}, r"^scale_attn_weights=False: only True is supported$"),
        ({"add_cross_attention": True}, r"^add_cross_attention=True: only False is supported$"),
        (
            {"activation_function": "silu"},
            r"^activation_function='silu': must be one of 'gelu_new', 'gelu_pytorch_tanh'",
        ),
        ({"activation_function": ["relu"]}, r"^activation_function=\['relu'\]: must be one of"),
        ({"n_layer": 0}, r"^n_layer=0: must be an integer of at least 1$"),
        ({"n_layer": "2"}, r"^n_layer='2': must be an integer of at least 1$"),
        ({"n_head": 3}, r"^num_heads=3: must divide d_model=4$"),
        ({"scale_attn_by_inverse_layer_idx": "yes"}, r"^scale_attn_by_inverse_layer_idx='yes': must be true or false$"),
        ({"n_heads": 2}, r"^n_heads=2: unknown option of GPT-2; did you mean 'n_head'\?$"),
        ({"quantization_config": {}}, r"^quantization_config=\{\}: unknown option of GPT-2"),
    ],
)
def test_options_we_have_no_model_for(options, message):
    with pytest.raises(ConfigError, match=message) as error:
        config_from_gpt2(TINY | options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "change", "message"),
    [
        ({}, {"transformer.h.1.mlp.c_fc.bias": None}, r"transformer\.h\.1\.mlp\.c_fc\.bias \(16,\) is missing$"),
        ({}, {"transformer.h.0.attn.q": np.ones(2)}, r"transformer\.h\.0\.attn\.q \(2,\) is surplus$"),
        (
            {},
            {"transformer.h.0.attn.c_attn.weight": np.ones((12, 4))},
            r"has the shape \(12, 4\) instead of \(4, 12\)$",
        ),
        ({"n_positions": 6}, {}, r"transformer\.wpe\.weight has the shape \(5, 4\) instead of \(6, 4\)$"),
        ({"n_layer": 1}, {}, r"transformer\.h\.1\.ln_1\.weight \(4,\) is surplus; "),
        ({"n_layer": 3}, {}, r"transformer\.h\.2\.ln_1\.weight \(4,\) is missing; "),
        (
            {},
            {"lm_head.weight": np.ones((7, 4))},
            r"^lm_head\.weight .*: must equal .*tie_word_embeddings=True ties it$",
        ),
        ({"tie_word_embeddings": False}, {}, r"lm_head\.weight \(7, 4\) is missing$"),
    ],
)
def test_weights_that_contradict_the_configuration(options, change, message):
    state = {name: array for name, array in (tiny_state() | change).items() if array is not None}
    with pytest.raises(ConfigError, match=message) as error:
        params_from_gpt2(state, TINY | options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (SMALL, r"^model: a Mixture-of-Modules is no GPT-2 .* 'safetensors' holds it$"),
        (dataclasses.replace(SMALL.vanilla(), num_classes=2), r"^num_classes=2: only None is supported"),
    ],
)
def test_models_that_are_no_gpt2(config, message):
    for write in (config_to_gpt2, lambda config: params_to_gpt2({}, config)):
        with pytest.raises(ConfigError, match=message):
            write(config)


# Live models.


@pytest.mark.parametrize("name", ["untied", "scaled_by_layer", "one_layer"])
def test_transformers_loads_what_is_written(name, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    safetensors = pytest.importorskip("safetensors.numpy")
    from make_gpt2_goldens import MODELS, PLAIN, SIZES, random_model

    theirs = random_model(transformers.GPT2Config(**(SIZES | PLAIN | MODELS[name])), seed=17)
    ids = torch.arange(20)[None] % 31
    with torch.no_grad():
        want = theirs(ids).logits.numpy()
    options, state = theirs.config.to_dict(), {k: v.numpy() for k, v in theirs.state_dict().items()}
    config, params = config_from_gpt2(options), params_from_gpt2(state, options)
    np.testing.assert_allclose(logits(config, params, ids.int().numpy()), want, rtol=0, atol=TOLERANCE)

    (tmp_path / "config.json").write_text(json.dumps(config_to_gpt2(config)))
    written = {key: np.ascontiguousarray(array) for key, array in params_to_gpt2(params, config).items()}
    safetensors.save_file(written, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded, info = transformers.GPT2LMHeadModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    with torch.no_grad():
        np.testing.assert_allclose(loaded.eval()(ids).logits.numpy(), want, rtol=0, atol=TOLERANCE)
