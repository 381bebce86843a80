"""Signs of failure, on histories that are made up: given where a figure lies beyond its limit, and only there."""

import copy
import dataclasses
import json
import lzma
import math
from pathlib import Path

import numpy as np
import pytest
from small import SMALL, change, explicit

from benchmarks.signs import WAYS, broken, experiment
from mom_jax.analysis.signs import RULES, History, SignsConfig, before_training, findings
from mom_jax.analysis.signs import figures as of
from mom_jax.config import ChoiceConfig
from mom_jax.fields import ConfigError, from_dict

GOLDENS = Path(__file__).parents[1] / "goldens"
MODEL = change(SMALL, num_attn_modules=4, num_ffn_modules=4, num_steps=3, top_k=2, balance={"weight": 0.01})
LIMITS = SignsConfig(warmup=30, window=10, patience=2)
EVERY, STEPS, SEQUENCES = 10, 60, 4
# Of the classes at each step: four modules and SKIP.
APART = [[0.3, 0.3, 0.2, 0.1, 0.1], [0.1, 0.2, 0.3, 0.3, 0.1], [0.3, 0.1, 0.1, 0.3, 0.2]]


def healthy(seed=0):
    """The log of one phase in which all goes well."""
    rng, records = np.random.default_rng(seed), []
    for step in range(1, STEPS + 1):
        loss = 5 - step / STEPS + rng.normal() * 0.1
        side = {"entropy": [1.6, 1.5, 1.4], "usage": APART, "grad_norm": 0.02, "update": 5e-4}
        train = {"kind": "train", "step": step, "loss": loss, "total": loss + 0.02, "balance": 2.0, "grad_norm": 1.0}
        train["learning_rate"] = 1e-3
        records.append(train | {"routers": {"attention": copy.deepcopy(side), "ffn": copy.deepcopy(side)}})
        if step % EVERY == 0:
            routers = copy.deepcopy(records[-1]["routers"])
            records.append({"kind": "validation", "step": step, "loss": loss, "routers": routers})
            records.append(analysis(step))
    exchanged = {"normal": [4.0, 4.1], "exchanged": [4.05, 4.16]}
    return [*records, {"kind": "final", "step": STEPS, "loss": 4.0, "exchanged": exchanged}]


def analysis(step):
    record = {"kind": "analysis", "step": step, "similarity": {}, "dependence": {}, "churn": {}}
    for side in ("attention", "ffn"):
        record["similarity"][side] = {"weights": 0.02, "outputs": 0.4}
        dependence = {"entropy": 1.3, "step": 0.1, "token": 0.5, "context": 0.7}
        record["dependence"][side] = dependence | {"step_baseline": 0.001, "token_baseline": 0.1}
        record["churn"][side] = None if step == EVERY else 0.2
    return record


def shown(records, model=MODEL, limits=LIMITS):
    """The signs that a log shows: {(sign, side): (step, text)}."""
    return {
        (f.sign, f.side): (step, f.text)
        for step, f in findings(records, model, limits, sequences=SEQUENCES, steps=STEPS)
    }


def altered(kind, alter, first=1):
    """The healthy log, with `alter` applied to the records of a kind from the step `first` on."""
    records = healthy()
    for record in records:
        if record["kind"] == kind and record["step"] >= first:
            alter(record)
    return records


def in_ffn(part, **values):
    return lambda record: record[part]["ffn"].update(values)


FEW, NO_STEPS = [[0.5, 0.45, 0.01, 0.01, 0.03]] * 3, [[0.2, 0.32, 0.17, 0.24, 0.07]] * 3
SKIP, NO_TOKENS = [[0.2, 0.1, 0.1, 0.1, 0.5]] * 3, [[0.5, 0.5, 0, 0, 0], [0, 0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5, 0]]
DEALT = {"normal": [4.0, 4.1], "exchanged": [4.0, 4.1]}
# By the figure that must lie beyond its limit: the sign, its side, the log, and a word of what is said.
BROKEN = {
    "router_gradient": ("learning", "ffn", altered("train", in_ffn("routers", grad_norm=1e-7)), "router.weights"),
    "router_movement": ("learning", "ffn", altered("train", in_ffn("routers", update=1e-6)), "router_multiplier"),
    "module_spread": ("collapse", "ffn", altered("validation", in_ffn("routers", usage=FEW)), "2.2 of 4"),
    "skip_share": ("skip", "ffn", altered("validation", in_ffn("routers", usage=SKIP)), "100 %"),
    "step_share": ("step", "ffn", altered("validation", in_ffn("routers", usage=NO_STEPS)), "0.00 %"),
    "token_choice": ("token", "ffn", altered("validation", in_ffn("routers", usage=NO_TOKENS)), "ffn.preference"),
    "token_share": ("token", "ffn", altered("analysis", in_ffn("dependence", token=0.1)), "gru"),
    "exchange_effect": ("token", None, altered("final", lambda r: r.update(exchanged=DEALT)), "dealt"),
    "churn": ("churn", "ffn", altered("analysis", lambda r: r["churn"].update(ffn=0.7)), "learning rate"),
    "weight_similarity": ("similarity", "ffn", altered("analysis", in_ffn("similarity", weights=1.0)), "alike"),
    "output_similarity": ("similarity", "ffn", altered("analysis", in_ffn("similarity", outputs=1.0)), "alike"),
    "balance_share": ("balance", None, altered("train", lambda r: r.update(balance=200.0)), "balance.weight"),
    "loss_noise": ("loss", None, altered("train", lambda r: r.update(loss=5 + (-2) ** ((r["step"] + 1) % 2))), "root"),
    "loss_rise": ("loss", None, altered("train", lambda r: r.update(loss=r["loss"] + 1), first=41), "rises"),
}


@pytest.mark.parametrize("figure", [rule.figure for rule in RULES])
def test_each_sign_is_given_once_where_its_figure_is_beyond_its_limit(figure):
    sign, side, records, word = BROKEN[figure]
    assert list(shown(records)) == [(sign, side)]
    [(step, text)] = shown(records).values()
    # Two judgements in a row after the warm-up; a rise begins later, churn counts late, the exchange comes at the end.
    assert step == {"exchange_effect": STEPS, "loss_rise": 60, "churn": 60}.get(figure, 40)
    assert word in text
    assert "{" not in text
    # Out of reach, the limit silences it.
    least = next(rule.least for rule in RULES if rule.figure == figure)
    never = 0.0 if least else math.inf if figure.startswith("loss_") else 1.0
    if figure != "balance_share":  # here all of the loss and more
        assert (sign, side) not in shown(records, limits=dataclasses.replace(LIMITS, **{figure: never}))
    assert shown(records, limits=dataclasses.replace(LIMITS, enabled=False)) == {}
    # Once is not enough.
    if figure != "exchange_effect":
        assert shown(records, limits=dataclasses.replace(LIMITS, patience=10)) == {}
    assert shown(records, limits=dataclasses.replace(LIMITS, warmup=1000)) == {}


@pytest.mark.parametrize("seed", range(3))
def test_a_healthy_run_shows_none(seed):
    assert shown(healthy(seed)) == {}


# Of the recorded runs that are healthy, and of those that are built to fail.
RECORDED = {
    "healthy": {("step", "attention"), ("step", "ffn")},  # its routers hardly tell the steps apart
    "healthy_k1": set(),
    "steps_apart": set(),
    "no_balance": {("skip", "attention"), ("skip", "ffn")},
    "restless": {("churn", "attention"), ("churn", "ffn")},
    "heavy_balance": {("balance", None)},
    "huge_balance": {("balance", None), ("token", None)},
    "still_routers": {("learning", "attention"), ("learning", "ffn")},
    "renormalised_k1": {("learning", "attention"), ("learning", "ffn")},
    "renormalised_k1_no_balance": {("learning", "attention"), ("learning", "ffn")},
    "skipping": {("skip", "attention"), ("skip", "ffn")},
    "favoured": {("collapse", "attention"), ("collapse", "ffn")},
    "by_step_alone": {("token", "attention"), ("token", "ffn"), ("token", None)},
    "fast": {("loss", None), ("collapse", "attention"), ("skip", "attention")},
    "unsteady": {("churn", "attention"), ("churn", "ffn"), ("collapse", "attention")},
    "alike": {("similarity", "attention"), ("similarity", "ffn")},
}


@pytest.fixture(scope="module")
def recorded():
    return json.loads(lzma.decompress((GOLDENS / "signs.json.xz").read_bytes()))


@pytest.mark.parametrize("way", WAYS)
def test_recorded_runs_give_their_signs(way, recorded):
    config = broken(experiment(120), way, "source", Path("run"))
    [phase] = config.phases
    numbers = {"sequences": config.data.batch_size, "steps": phase.steps}
    found = {(f.sign, f.side) for _, f in findings(recorded[way], config.model, config.signs, **numbers)}
    assert found >= RECORDED[way]
    if way in ("healthy", "healthy_k1", "steps_apart"):
        assert found == RECORDED[way]
    # The limits that decide are the defaults.
    assert config.signs == SignsConfig(warmup=config.signs.warmup, window=config.signs.window)


def test_what_follows_from_another_sign_is_not_said():
    usage = [[0.5, 0.5, 0, 0, 0]] * 3
    assert list(shown(altered("validation", in_ffn("routers", usage=usage)))) == [("collapse", "ffn")]


def test_a_loss_that_is_no_number_is_a_sign():
    assert ("loss", None) in shown(altered("train", lambda r: r.update(loss=None, total=None), first=35))


def test_renormalised_weights_of_one_choice_are_known_before_training():
    one = change(MODEL, top_k=1, router={"weights": "renormalised"})
    for model, sides in (
        (one, ["attention", "ffn"]),
        (change(one, attention=ChoiceConfig("ordered"), num_steps=4), ["ffn"]),
    ):
        assert [(f.sign, f.side) for f in before_training(model, LIMITS)] == [("learning", side) for side in sides]
        assert list(shown([], model)) == [("learning", side) for side in sides]
    for model in (MODEL, change(one, top_k=2), change(one, router={"weights": "auto"}), one.vanilla()):
        assert before_training(model, LIMITS) == []
    assert before_training(one, dataclasses.replace(LIMITS, enabled=False)) == []


def test_evaluations_that_follow_soon_share_a_judgement():
    limits = dataclasses.replace(LIMITS, window=20)
    history = History(MODEL, limits, sequences=SEQUENCES, steps=STEPS)
    for record in healthy():
        history.add(record)
    assert [point.step for point in history.points] == [40, 60, 60]  # the last one is the exchange test's


def test_a_phase_that_goes_on_from_another_run_is_warmed_up_anew():
    _, _, records, _ = BROKEN["skip_share"]
    assert {step for step, _ in shown([r for r in records if r["step"] > 10]).values()} == {50}


def test_choices_may_change_early_in_a_phase_and_a_rate_of_0_moves_nothing():
    early = altered("analysis", lambda r: r["churn"].update(ffn=0.7 if r["step"] <= 50 else 0.1))
    assert shown(early) == {}
    assert shown(altered("train", lambda r: r.update(learning_rate=0.0))) == {}


def test_a_log_read_again_shows_the_same():
    _, _, records, _ = BROKEN["skip_share"]
    assert shown(json.loads(json.dumps(records))) == shown(records)


def test_figures_of_usage_are_those_of_the_formulas():
    rng = np.random.default_rng(0)
    model = change(MODEL, num_chunks=2)
    usage = rng.dirichlet(np.ones(5), 6)
    found = of.of_usage(usage.tolist(), model, "ffn")

    def entropy(p):
        return -sum(x * math.log(x) for x in p)

    joint = usage.reshape(2, 3, 5) / 3  # a chunk's steps are equally likely
    information = [
        sum(
            joint[s, h, c] * math.log(joint[s, h, c] / (joint[s, h].sum() * joint[s, :, c].sum()))
            for h in range(3)
            for c in range(5)
        )
        for s in range(2)
    ]
    whole = [entropy(joint[s].sum(0)) for s in range(2)]
    assert found["step_share"] == pytest.approx(sum(information) / sum(whole))
    real = [joint[s, :, :4].sum(0) / joint[s, :, :4].sum() for s in range(2)]
    assert found["modules_in_use"] == pytest.approx(np.mean([math.exp(entropy(p)) for p in real]))
    assert found["skip"] == pytest.approx(2 * usage[:, -1].mean())
    spread = np.mean([math.exp(entropy(p)) - 2 for p in usage])
    assert found["token_choice"] == pytest.approx(spread / 3)


def test_what_a_prior_leaves_is_an_even_choice():
    layers = change(MODEL, ffn=ChoiceConfig("ordered_or_skip"), num_steps=4, top_k=1)
    assert of.allowed_classes(layers, "ffn").tolist() == [2, 2, 2, 2]
    half = [[0.5 * (c == h) for c in range(4)] + [0.5] for h in range(4)]
    found = of.of_usage(half, layers, "ffn")
    assert (found["skip_share"], found["token_choice"]) == (0, pytest.approx(1))
    never = -math.inf
    table = explicit([0, 0, never, never, 0], [0, 0, 0, 0, 0], [never, 0, 0, 0, 0])
    assert of.allowed_classes(change(MODEL, ffn=table), "ffn").tolist() == [3, 5, 4]
    # Where all that is allowed is taken there is no choice to judge.
    assert set(of.of_usage([[1 / 5] * 5] * 3, change(MODEL, top_k=5), "ffn")) == {"step_share"}


def test_limits_are_checked_and_read():
    assert from_dict(SignsConfig, {"churn": 0.3}) == SignsConfig(churn=0.3)
    with pytest.raises(ConfigError, match=r"churn=1\.5: must lie between 0 and 1"):
        SignsConfig(churn=1.5)
    with pytest.raises(ConfigError, match="window=0: must be at least 1"):
        SignsConfig(window=0)
    with pytest.raises(ConfigError, match="loss_noise=nan"):
        SignsConfig(loss_noise=math.nan)
    # No figure without a limit, and the other way round.
    limits = {f.name for f in dataclasses.fields(SignsConfig)} - {"enabled", "warmup", "window", "patience"}
    assert {rule.figure for rule in RULES} == limits == set(BROKEN)
