"""Special cases of the model, by the files in configs/special, against plain models: values and all gradients."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from small import assert_close, quick, random_ids, random_params

import mom_jax as mom
from mom_jax import losses
from mom_jax.config import SIDES
from train.cli import load_config

FOLDER = Path(__file__).parents[2] / "configs" / "special"
FILES = {path.stem: path for path in sorted(FOLDER.glob("*.py")) if "def get_config" in path.read_text()}
QUICK = ("mixture_of_depths",)
CAPACITY = 0.4  # of 7 tokens: 3


def small(name):
    """The file's model, narrow, without anchors."""
    config = load_config(str(FILES[name])).model
    narrow = config.module_d_ff and 24 // config.grain("ffn")
    sizes = {"module_d_ff": narrow, "vocab_size": 29, "context_length": 9, "d_model": 16, "d_ff": 24, "num_heads": 2}
    config = dataclasses.replace(config, **sizes, num_bottom=0, num_top=0, remat="none")
    config = dataclasses.replace(config, router=dataclasses.replace(config.router, dim=8))
    for side in SIDES:
        choice = getattr(config, side)
        if choice.capacity is not None:
            config = dataclasses.replace(config, **{side: dataclasses.replace(choice, capacity=CAPACITY)})
    return config


# Plain models: a loop over sublayers in Python, and nothing that a case does not have.


class Plain:
    """What the loops below are made of. x: [B, L, D]. Every sublayer's result is to be added to x."""

    def __init__(self, config, params):
        self.config, self.chunk = config, params["chunks"][0]
        self.states = dict.fromkeys(SIDES)

    def module(self, side, m):
        return {name: array[m] for name, array in self.chunk[side].items()}

    def sublayer(self, side, x, modules, picked=(None,), weights=(None,)):
        """The sublayers of these modules: for each who takes it, bool [B, L, 1], and what it weighs there."""
        modules = [self.module(side, m) for m in modules]
        if side == "ffn":
            return reference.ffn(modules, x, picked, weights, self.config)
        return reference.attention(modules, x, picked, weights, None, self.config)

    def logits(self, side, x):
        """The router's, [B, L, C], and its state goes on."""
        logits, self.states[side] = reference.route(
            self.chunk[f"{side}_router"], x, 0, self.states[side], None, self.config
        )
        return logits


def each(steps):
    return [(h, side) for h in range(steps) for side in SIDES]


def vanilla(plain, x):
    for h, side in each(4):
        x = x + plain.sublayer(side, x, [h])
    return x, 0.0


def parameter_sharing(plain, x):
    for _, side in each(4):
        x = x + plain.sublayer(side, x, [0])
    return x, 0.0


def scheduled(plain, x):
    for h, side in each(8):
        x = x + plain.sublayer(side, x, [h % 4])
    return x, 0.0


def ahead(plain, side, x, h):
    """By how much module h is ahead of SKIP, [B, L, 1]; its sigmoid is what the module weighs."""
    logits = plain.logits(side, x)
    return logits[..., h : h + 1] - logits[..., -1:]


def layer_skipping(plain, x):
    for h, side in each(4):
        margin = ahead(plain, side, x, h)
        x = x + plain.sublayer(side, x, [h], [margin >= 0], [jax.nn.sigmoid(margin)])
    return x, 0.0


def early_exit(plain, x):
    gone = jnp.zeros((*x.shape[:2], 1), bool)
    for h, side in each(4):
        margin = ahead(plain, side, x, h)
        gone = gone | (margin < 0)
        x = x + plain.sublayer(side, x, [h], [~gone], [jax.nn.sigmoid(margin)])
    return x, 0.0


def mixture_of_depths(plain, x, causal=False):
    guess = 0.0
    for h, side in each(4):
        if h % 2 == 0:
            x = x + plain.sublayer(side, x, [h])
            continue
        margin = ahead(plain, side, x, h)
        p = jax.nn.sigmoid(margin)
        if causal:
            within = margin >= 0
        else:
            # The three tokens of a sequence with the largest margins.
            last = jnp.sort(margin, 1)[:, -3][:, None]
            within = margin >= last
            guess -= jnp.mean(jnp.log(jnp.where(within, p, 1 - p))) / 4
        x = x + plain.sublayer(side, x, [h], [within], [p])
    return x, plain.config.capacity_loss * guess


def best(p, k):
    """(who is among the k largest, what they weigh, renormalised), for each class [B, L, 1]; and the factors of the
    load-balancing loss of Switch Transformers, eq. 4."""
    last, classes = jnp.sort(p, -1)[..., -k][..., None], p.shape[-1]
    weight = jnp.where(p >= last, p, 0.0) / jnp.where(p >= last, p, 0.0).sum(-1, keepdims=True)
    split = [[array[..., i : i + 1] for i in range(classes)] for array in (p >= last, weight)]
    return *split, (jax.nn.one_hot(p.argmax(-1), classes).mean((0, 1)), p.mean((0, 1)))


def experts(plain, x, pool, k=2, scale=1.0):
    """The FFN of the best of the experts in `pool`, and what the balance loss is made of."""
    picked, weights, balance = best(jax.nn.softmax(plain.logits("ffn", x)[..., pool], -1), k)
    return x + plain.sublayer("ffn", x, pool, picked, [scale * weight for weight in weights]), *balance


def moe_per_layer(plain, x):
    balance = 0.0
    for h in range(4):
        x = x + plain.sublayer("attention", x, [h])
        x, f, p = experts(plain, x, np.arange(4 * h, 4 * h + 4))
        balance += 4 * jnp.sum(f * p)
    # Ours counts all 16 classes of the router, four times a layer's, and takes the mean of the four layers.
    return x, plain.config.balance.weight * balance


def balance_over_all_steps(plain, fractions, probabilities):
    products = sum(fractions) * sum(probabilities) / len(fractions) ** 2
    return plain.config.balance.weight * products.size * jnp.sum(products)


def moe_shared_pool(plain, x, **kwargs):
    fractions, probabilities = [], []
    for h in range(4):
        x = x + plain.sublayer("attention", x, [h])
        x, f, p = experts(plain, x, np.arange(plain.config.num_ffn_modules), **kwargs)
        fractions.append(f)
        probabilities.append(p)
    return x, balance_over_all_steps(plain, fractions, probabilities)


def fine_grained(plain, x):
    assert plain.module("ffn", 15)["in_kernel"].shape == (16, 6)  # a quarter of 24
    return moe_shared_pool(plain, x, k=4, scale=4.0)


def values_only(plain, x):
    fractions, probabilities, config = [], [], plain.config
    modules = [plain.module("attention", m) for m in range(4)]

    def part(module, i):
        """Queries, keys or values."""
        y = reference.layer_norm(x, module["norm_scale"], module["norm_bias"], config)
        return reference.linear(y, module["qkv_kernel"][:, i], module["qkv_bias"][i])

    for h in range(4):
        picked, weights, (f, p) = best(jax.nn.softmax(plain.logits("attention", x), -1), 2)
        v = sum(jnp.where(own, part(module, 2), 0.0) for module, own in zip(modules, picked, strict=True))
        y = reference.attend(jnp.concatenate([part(modules[h], 0), part(modules[h], 1), v], -1), None, config)
        for module, weight in zip(modules, weights, strict=True):
            x = x + weight * reference.linear(y, module["out_kernel"], module["out_bias"])
        x = x + plain.sublayer("ffn", x, [h])
        fractions.append(f)
        probabilities.append(p)
    return x, balance_over_all_steps(plain, fractions, probabilities)


PLAIN = {
    f.__name__: f
    for f in (
        vanilla,
        parameter_sharing,
        scheduled,
        layer_skipping,
        early_exit,
        mixture_of_depths,
        moe_per_layer,
        moe_shared_pool,
        fine_grained,
        values_only,
    )
}
SEEDS = {"early_exit": 2}  # with which tokens leave at many places; the others' is 0
# Of the balance loss there is no other's to compare with.
UNBALANCED = ("layer_skipping", "early_exit", "mixture_of_depths")


def plain_total(config, params, ids, **kwargs):
    """(the total loss, the logits)."""
    length = ids.shape[1]
    x = params["embed"]["tokens"][ids] + params["embed"]["positions"][:length][None]
    x, more = PLAIN[kwargs.pop("name")](Plain(config, params), x, **kwargs)
    x = reference.layer_norm(x, params["final_norm"]["scale"], params["final_norm"]["bias"], config)
    logits = x @ params["embed"]["tokens"].T
    log_p = jax.nn.log_softmax(logits[:, :-1], -1)
    return more - jnp.mean(jnp.take_along_axis(log_p, ids[:, 1:, None], -1)), logits


def our_total(config, params, ids):
    output = mom.with_parameters(config, params)(ids)
    nll, count = losses.next_token(output, ids)
    return losses.finish(losses.LossSums(nll, count, output.routing), config).total, (output.logits, output.routing)


def test_every_file_has_a_plain_model():
    assert set(PLAIN) == set(FILES)


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in PLAIN]
)
def test_equals_the_plain_model(name):
    config = small(name)
    if name in UNBALANCED:
        config = dataclasses.replace(config, balance=dataclasses.replace(config.balance, weight=0.0))
    params, ids = random_params(config, SEEDS.get(name, 0)), random_ids()
    ours = quick(jax.value_and_grad(lambda p: our_total(config, p, ids), has_aux=True))
    plain = jax.jit(jax.value_and_grad(lambda p: plain_total(config, p, ids, name=name), has_aux=True))
    (total, (logits, routing)), gradient = ours(params)
    (want_total, want_logits), want_gradient = plain(params)
    assert_close(total, want_total)
    assert_close(logits, want_logits)
    assert_close(gradient, want_gradient)
    if config.skip:
        for side, stats in routing.sides().items():
            taken = np.asarray(stats.choices_C[..., : config.modules(side)].sum(-1) / stats.tokens)
            assert len({0, 1} | set(taken.flatten().tolist())) > 2, (side, taken)


def test_a_capacity_looks_at_later_tokens_and_its_causal_variant_does_not():
    config = small("mixture_of_depths")
    params, ids = random_params(config), random_ids()
    other = ids.at[:, -1].set((ids[:, -1] + 1) % config.vocab_size)

    def before(config, ids):
        return mom.with_parameters(config, params)(ids).logits[:, :-1]

    both = [quick(lambda a, b, c=c: (before(c, a), before(c, b)))(ids, other) for c in (config, config.causal())]
    (a, b), (c, d) = both
    assert np.abs(a - b).max() > 1e-2
    assert_close(c, d, atol=1e-6)
    plain = quick(lambda: plain_total(config, params, ids, name="mixture_of_depths", causal=True)[1])()
    assert_close(c, plain[:, :-1])
    model = mom.with_parameters(config, params)
    with pytest.raises(ValueError, match=r"attention\.capacity=0\.4, ffn\.capacity=0\.4: cannot be used with a cache"):
        model(ids, cache=model.init_cache(2, 9))


@pytest.mark.slow
def test_documents_in_a_row_have_capacities_of_their_own():
    config = small("mixture_of_depths")
    params, ids = random_params(config), random_ids()
    lengths = (4, 3)
    segments = jnp.repeat(jnp.arange(2), jnp.array(lengths), total_repeat_length=7)[None].repeat(2, 0)
    positions = jnp.concatenate([jnp.arange(n) for n in lengths])[None]

    @quick
    def logits(ids, positions, segments):
        return mom.with_parameters(config, params)(ids, positions=positions, segment_ids=segments).logits

    packed = logits(ids, positions, segments)
    for part in (slice(0, 4), slice(4, 7)):
        assert_close(packed[:, part], quick(mom.with_parameters(config, params))(ids[:, part]).logits)
