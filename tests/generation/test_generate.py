"""Generation against the full forward pass, token by token, and what users may ask of it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small import quick

import mom_jax as mom
from mom_jax.generation import programs, sampling
from mom_jax.generation.settings import LogitsError, Settings, bucket
from mom_jax.model import parameters, with_parameters

CONFIG = mom.ModelConfig(
    vocab_size=50,
    context_length=64,
    d_model=32,
    num_heads=4,
    anchor_after_chunk=True,
    num_top=0,
    num_attn_modules=3,
    num_ffn_modules=4,
    num_steps=2,
    top_k=2,
    router=mom.RouterConfig(dim=16, temperature=1.0),
)
PROMPTS = [[7], [3, 1, 4, 1, 5, 9, 2, 6, 5, 3], [2, 7, 1, 8]]


@pytest.fixture(scope="module")
def model():
    model = mom.MoM(CONFIG, rngs=nnx.Rngs(0))
    # So that the most probable tokens are far apart, and differ from place to place.
    model.embed.tokens[...] = model.embed.tokens[...] * 10
    model.embed.positions[...] = model.embed.positions[...] * 30
    return model


@pytest.fixture(scope="module")
def decoder(model):
    return mom.Decoder(model)


@nnx.jit
def forward(model, ids):
    return model(ids).logits


def slow_greedy(model, prompt, count):
    ids = list(prompt)
    for _ in range(count):
        padded = jnp.array([ids + [0] * (CONFIG.context_length - len(ids))], jnp.int32)
        ids.append(int(jnp.argmax(forward(model, padded)[0, len(ids) - 1])))
    return ids[len(prompt) :]


@pytest.fixture(scope="module")
def greedy(model):
    return [slow_greedy(model, prompt, 8) for prompt in PROMPTS]


def test_greedy_equals_the_full_forward_pass(model, decoder, greedy):
    assert decoder.generate(PROMPTS, 8, temperature=0) == greedy
    assert mom.generate(model, PROMPTS, 8, temperature=0) == greedy
    assert all(len(set(tokens)) > 2 for tokens in greedy)


def test_a_prompt_alone_and_in_a_batch_are_alike(decoder, greedy):
    assert [decoder.generate([prompt], 8, temperature=0)[0] for prompt in PROMPTS] == greedy


def test_one_most_probable_token_is_greedy(decoder, greedy):
    assert decoder.generate(PROMPTS, 8, top_k=1, seed=4) == greedy
    assert decoder.generate(PROMPTS, 8, top_p=1e-6, seed=4) == greedy


def test_seeds_repeat_and_differ(decoder):
    draws = [decoder.generate(PROMPTS, 8, temperature=5.0, seed=seed) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


def test_draws_of_a_row_do_not_depend_on_the_others(decoder):
    together = decoder.generate(PROMPTS, 8, temperature=5.0, seed=3)
    assert decoder.generate(PROMPTS[:1], 8, temperature=5.0, seed=3) == together[:1]
    same = decoder.generate([PROMPTS[0]] * 3, 8, temperature=5.0, seed=3)
    assert same[0] == together[0]
    assert same[0] != same[1]  # yet rows are drawn apart


def test_samples_follow_the_distribution(model):
    logits = model(jnp.array([[7]], jnp.int32)).logits[0, -1]
    count = 4000
    settings = Settings(temperature=3.0, top_k=5)
    chosen, _ = sampling.choose(
        jnp.tile(logits[None], (count, 1)),
        None,
        sampling.values(settings, 50),
        jax.random.key(0),
        np.int32(0),
        greedy=False,
        count=sampling.candidates(settings, 50),
    )
    tokens, logits = np.asarray(chosen), np.asarray(logits) / 3.0
    best = np.argsort(-logits)[:5]
    assert set(tokens.tolist()) <= set(best.tolist())
    expected = np.exp(logits[best]) / np.exp(logits[best]).sum()
    observed = np.array([(tokens == token).mean() for token in best])
    np.testing.assert_allclose(observed, expected, atol=4 * 0.5 / count**0.5)


@pytest.mark.parametrize("few", [sampling.FEW, 12])
def test_top_k_and_top_p_as_defined(monkeypatch, few):
    """Against the definition: the tokens in order of their probability, until the sum before one reaches top_p."""
    monkeypatch.setattr(sampling, "FEW", few)
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4, 40)).astype(np.float32) * 2
    for top_k, top_p in [(None, 0.3), (None, 0.95), (7, 0.8), (7, None), (40, 0.5), (33, 1.0), (1, 0.9)]:
        settings = Settings(top_k=top_k, top_p=top_p)
        count = sampling.candidates(settings, 40)
        got = np.asarray(sampling.restrict(jnp.asarray(logits), count, sampling.values(settings, 40)))
        for row, kept in zip(logits.astype(np.float64), got, strict=True):
            order = np.argsort(-row)[:top_k]
            p = np.exp(row[order]) / np.exp(row[order]).sum()
            want = order[np.cumsum(p) - p < (top_p or 1.0)]
            assert set(np.flatnonzero(np.isfinite(kept)).tolist()) == set(want.tolist()), (top_k, top_p)


def test_repetition_penalty_by_hand():
    scores = jnp.array([[2.0, -2.0, 3.0, -3.0]], jnp.float32)
    seen = jnp.array([[True, True, False, False]])
    np.testing.assert_allclose(sampling.penalise(scores, seen, np.float32(2.0)), [[1.0, -4.0, 3.0, -3.0]])


def test_a_penalty_forbids_what_the_prompt_and_the_row_have(decoder):
    [tokens] = decoder.generate([PROMPTS[1]], 8, temperature=0, repetition_penalty=1e6)
    assert len(set(tokens)) == 8
    assert not set(tokens) & set(PROMPTS[1])


def test_it_ends_before_the_separator(decoder, greedy):
    stop = greedy[1][3]
    expected = [row[: row.index(stop)] if stop in row else row for row in greedy]
    assert decoder.generate(PROMPTS, 8, temperature=0, eos_id=stop) == expected


def test_a_stop_function_ends_its_row_only(decoder, greedy):
    def stop(tokens):
        return tokens == greedy[1][:3]

    got = decoder.generate(PROMPTS, 8, temperature=0, stop=stop)
    assert got == [greedy[0], greedy[1][:3], greedy[2]]


def test_streaming_gives_each_step(decoder, greedy):
    ended = {"at": 3}
    steps = list(decoder.stream(PROMPTS, 8, temperature=0, stop=lambda tokens: tokens == greedy[1][: ended["at"]]))
    assert [step[0] for step in steps] == greedy[0]
    assert [step[1] for step in steps] == [*greedy[1][:3], *[None] * 5]


def test_streaming_works_only_as_far_as_it_is_asked(decoder):
    calls = []
    stream = decoder.stream(PROMPTS[:1], 8, temperature=0, stop=lambda tokens: calls.append(len(tokens)))
    next(stream)
    assert calls == [1]
    next(stream)
    assert calls == [1, 2]


@pytest.mark.slow
def test_noise_in_evaluation_is_drawn_by_row_and_position():
    router = mom.RouterConfig(kind="gru_random", dim=8, noise_in_evaluation=True)
    config = mom.ModelConfig(
        vocab_size=20, context_length=40, d_model=16, num_heads=2, num_bottom=0, num_top=0, num_steps=2, router=router
    )
    with pytest.raises(ValueError, match="noise_in_evaluation"):
        mom.MoM(config, rngs=nnx.Rngs(0))(jnp.zeros((1, 4), jnp.int32))
    noise_of = quick(lambda positions: programs._noise(config, positions, jax.random.key(0)))
    noise = noise_of(jnp.array([[0, 1, 2], [0, 0, 1]], jnp.int32))
    assert noise.ffn.shape == (1, 2, 2, 3, 8)
    later = noise_of(jnp.array([[2], [1]], jnp.int32))
    np.testing.assert_array_equal(later.attention[:, :, :, 0], noise.attention[:, :, :, 2])
    assert len(mom.generate(mom.MoM(config, rngs=nnx.Rngs(0)), [[1, 2]], 4)[0]) == 4


@pytest.mark.parametrize(
    ("prompts", "settings", "message"),
    [
        ([], {}, "at least one token"),
        ([[1], []], {}, "at least one token"),
        ([[1] * 60], {"max_new_tokens": 5}, "exceed context_length=64"),
        ([[1]], {"max_new_tokens": 0}, "max_new_tokens=0"),
        ([[1]], {"temperature": -1.0}, "temperature=-1.0"),
        ([[1]], {"temperature": float("nan")}, "temperature=nan"),
        ([[1]], {"temperature": 1e39}, r"temperature=1e\+39: must be finite"),
        ([[1]], {"temperature": 1e-60}, "temperature=1e-60: is 0 in float32"),
        ([[1]], {"top_p": 1e-60}, "top_p=1e-60: is 0 in float32"),
        ([[1]], {"top_k": 51}, "top_k=51"),
        ([[1]], {"top_p": 0.0}, "top_p=0.0"),
        ([[1]], {"repetition_penalty": 0.0}, "repetition_penalty=0.0"),
        ([[1]], {"num_beams": 0}, "num_beams=0"),
        ([[1]], {"num_beams": 2, "length_penalty": 101.0}, "length_penalty=101.0: must lie between"),
        ([[1]], {"seed": 2**63}, "seed=9223372036854775808: must have 64 bits"),
        ([[1]], {"num_beams": 26}, "num_beams=26: must be at most half"),
        ([[1]], {"num_beams": 2, "top_k": 4}, "num_beams=2: draws nothing"),
        ([[1]], {"num_beams": 2, "early_stopping": "maybe"}, "early_stopping=maybe"),
        ([[50]], {}, "token 50 is not below vocab_size=50"),
    ],
)
def test_wrong_input(decoder, prompts, settings, message):
    """By the call, also where nothing is asked for yet."""
    with pytest.raises(ValueError, match=message):
        decoder.stream(prompts, **({"max_new_tokens": 4} | settings))


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"top_k": 3}, {"num_beams": 2}])
def test_logits_that_are_no_numbers_end_it(model, settings):
    huge = with_parameters(CONFIG, jax.tree.map(lambda leaf: jnp.full_like(leaf, 3e38), parameters(model)))
    with pytest.raises(LogitsError, match="the logits of the next token are no numbers"):
        mom.generate(huge, [[1, 2]], 3, **settings)


def test_sizes_are_few():
    assert [bucket(n) for n in (1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 97, 129)] == [1, 2, 3, 4, 6, 6, 8, 8, 12, 16, 128, 192]
    assert all(n <= bucket(n) < 1.51 * n + 1 for n in range(1, 500))
    assert len({bucket(n, 32) for n in range(1, 1025)}) == 11


def compiled():
    return [function._cache_size() for function in (programs.prefill, programs.step, sampling.choose)]


def test_nothing_is_compiled_per_token_or_prompt_length(decoder):
    decoder.generate([[1]], 8, temperature=0.7, top_k=3, top_p=0.9)
    before = compiled()
    for length in (1, 9, 17, 31):
        for settings in ({"top_k": 4, "top_p": 0.5}, {"temperature": 2.0, "top_k": 3}):
            decoder.generate([[1] * length], length % 7 + 2, seed=length, **settings)
    assert compiled()[:2] == before[:2]
    assert compiled()[2] <= before[2] + 1  # three or four candidates


def test_a_second_decoder_of_the_same_shape_compiles_nothing(decoder):
    decoder.generate([[1]], 3, temperature=0)
    before = compiled()
    other = mom.MoM(CONFIG, rngs=nnx.Rngs(1))
    mom.generate(other, [[1]], 3, temperature=0)
    assert compiled() == before


def test_the_cache_is_updated_in_place(decoder):
    _, cache, positions = decoder._prefill([[1, 2]], 4, jax.random.key(0))
    old = cache.kv["chunks"][0][0].key
    decoder._step(cache, np.zeros(1, np.int32), positions, np.ones(1, bool), jax.random.key(0))
    assert old.is_deleted()


def test_a_capacity_drops_nothing_here(model):
    """The same parameters: decoding gives every choice room."""
    limited = mom.with_parameters(dataclasses.replace(CONFIG, capacity_factor=0.1), mom.parameters(model))
    decoder = mom.Decoder(limited)
    assert decoder.config == CONFIG


def test_a_kernel_for_long_sequences_only_is_for_training(model, greedy):
    """`splash` takes multiples of 128 tokens."""
    config = dataclasses.replace(model.config, attention_kernel="splash")
    decoder = mom.Decoder(mom.with_parameters(config, parameters(model)))
    assert decoder.generate(PROMPTS, 8, temperature=0) == greedy
