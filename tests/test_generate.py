"""Generation against the full forward pass, token by token."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import mom_jax as mom

CONFIG = mom.ModelConfig(
    vocab_size=50,
    context_length=64,
    d_model=32,
    num_heads=4,
    num_chunks=2,
    anchor_after_chunk=True,
    num_attn_modules=3,
    num_ffn_modules=4,
    num_steps=3,
    top_k=2,
    router=mom.RouterConfig(dim=16, temperature=1.0),
)
PROMPTS = [[7], [3, 1, 4, 1, 5, 9, 2, 6, 5, 3], [2, 7, 1, 8]]


@pytest.fixture(scope="module")
def model():
    model = mom.MoM(CONFIG, rngs=nnx.Rngs(0))
    model.embed.tokens[...] = model.embed.tokens[...] * 10  # so that the most probable tokens are far apart
    return model


@nnx.jit
def forward(model, ids):
    return model(ids).logits


def slow_greedy(model, prompt, count):
    ids = list(prompt)
    for _ in range(count):
        padded = jnp.array([ids + [0] * (CONFIG.context_length - len(ids))], jnp.int32)
        ids.append(int(jnp.argmax(forward(model, padded)[0, len(ids) - 1])))
    return ids[len(prompt) :]


def test_greedy_equals_the_full_forward_pass(model):
    expected = [slow_greedy(model, prompt, 8) for prompt in PROMPTS]
    assert mom.generate(model, PROMPTS, 8, temperature=0) == expected
    assert len({tuple(tokens) for tokens in expected}) > 1


def test_a_prompt_alone_and_in_a_batch_are_alike(model):
    together = mom.generate(model, PROMPTS, 8, temperature=0)
    assert [mom.generate(model, [prompt], 8, temperature=0)[0] for prompt in PROMPTS] == together


def test_one_most_probable_token_is_greedy(model):
    assert mom.generate(model, PROMPTS, 8, top_k=1, seed=4) == mom.generate(model, PROMPTS, 8, temperature=0)


def test_seeds_repeat_and_differ(model):
    draws = [mom.generate(model, PROMPTS, 8, temperature=5.0, seed=seed) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


def test_samples_follow_the_distribution(model):
    count = 4000
    tokens = np.array(mom.generate(model, [[7]] * count, 1, temperature=3.0, top_k=5)).reshape(-1)
    logits = np.asarray(model(jnp.array([[7]], jnp.int32)).logits[0, -1]) / 3.0
    best = np.argsort(-logits)[:5]
    assert set(tokens) <= set(best.tolist())
    expected = np.exp(logits[best]) / np.exp(logits[best]).sum()
    observed = np.array([(tokens == token).mean() for token in best])
    np.testing.assert_allclose(observed, expected, atol=4 * 0.5 / count**0.5)


def test_it_ends_before_the_separator(model):
    tokens = mom.generate(model, [PROMPTS[1]], 8, temperature=0)[0]
    stop = tokens[3]
    assert mom.generate(model, [PROMPTS[1]], 8, temperature=0, eos_id=stop)[0] == tokens[: tokens.index(stop)]


def test_noise_in_evaluation_is_drawn():
    router = mom.RouterConfig(kind="gru_random", dim=8, noise_in_evaluation=True)
    config = mom.ModelConfig(
        vocab_size=20, context_length=40, d_model=16, num_heads=2, num_steps=2, top_k=2, router=router
    )
    model = mom.MoM(config, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="noise_in_evaluation"):
        model(jnp.zeros((1, 4), jnp.int32))
    assert len(mom.generate(model, [[1, 2]], 4)[0]) == 4


@pytest.mark.parametrize(
    ("prompts", "settings", "message"),
    [
        ([], {}, "at least one token"),
        ([[1], []], {}, "at least one token"),
        ([[1] * 60], {"max_new_tokens": 5}, "exceed context_length=64"),
        ([[1]], {"max_new_tokens": 0}, "max_new_tokens=0"),
        ([[1]], {"temperature": -1.0}, "temperature=-1.0"),
        ([[1]], {"top_k": 51}, "top_k=51"),
        ([[50]], {}, "token 50 is not below vocab_size=50"),
    ],
)
def test_wrong_input(model, prompts, settings, message):
    with pytest.raises(ValueError, match=message):
        mom.generate(model, prompts, **({"max_new_tokens": 4} | settings))


def test_few_lengths_are_compiled(model):
    from mom_jax.generate import programs

    before = programs.step._cache_size()
    for length in (1, 9, 17, 31):
        mom.generate(model, [[1] * length], 3)
    assert programs.step._cache_size() == before + 1
