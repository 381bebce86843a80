"""The configurations in configs/: they load, and the paper's models have the sizes, depths and costs that they say."""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from configs import paper
from mom_jax.analysis.cost import (
    forward_flops_by_part,
    forward_flops_per_token,
    parameter_count,
)
from mom_jax.config import SIDES, ChoiceConfig
from mom_jax.interop.gpt2 import config_from_gpt2
from mom_jax.interop.phases import from_vanilla
from mom_jax.interop.recipe import in_turn
from mom_jax.routers import prior_table
from train.cli import load_config
from train.config import Config
from train.parse import parse_config
from train.steps.state import abstract_params

ROOT = Path(__file__).parents[2]
FILES = {
    str(path.relative_to(ROOT / "configs").with_suffix("")): path
    for folder in (".", "paper_routing")
    for path in sorted((ROOT / "configs" / folder).glob("*.py"))
    if "def get_config" in path.read_text()
}
# From OpenAI's GPT-2: the file with the same model, and the options with which the GPT-2 comes.
GPT2 = {
    "small": {"n_embd": 768, "n_head": 12, "n_layer": 12},
    "medium": {"n_embd": 1024, "n_head": 16, "n_layer": 24},
    "large": {"n_embd": 1280, "n_head": 20, "n_layer": 36},
}
PRETRAINED = {f"mom_gpt2_{size}": f"mom_{size}" for size in GPT2} | {
    "paper_routing/gpt2_small": "paper_routing/small",
    "paper_routing/gpt2_medium": "paper_routing/medium",
    "paper_routing/gpt2_large": "paper_routing/large_deep",
}
PAPERS = [name for name in paper.MODELS if name.startswith("paper")]
OURS = [name for name in paper.MODELS if name.startswith("mom")]
MOMS = [*PAPERS, *OURS]


def load(name):
    return load_config(str(FILES[name]))


def program(*arguments):
    """A program run from the root, as a user does: `python -m` puts nothing but the root on the path."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, "-m", *arguments], capture_output=True, text=True, cwd=ROOT, env=environment, check=False
    )


def run_table(*flags):
    done = program("configs.paper", *flags)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_the_table_has_every_paper_model():
    assert set(FILES) == {"quickstart", "quickstart_paper", *paper.MODELS, *PRETRAINED}


@pytest.mark.parametrize("name", FILES)
def test_every_file_loads_and_names_its_command_and_its_run(name):
    config = load(name)
    assert isinstance(config, Config)
    assert f"\nCommand: python -m train.main --config configs/{name}.py\n" in FILES[name].read_text()
    assert config.run == f"runs/{name.replace('_routing/', '_')}"
    assert config.model.vocab_size in (0, config.data.vocab_size)


def test_a_file_that_shares_with_another_loads_from_the_command_line():
    done = program("train.main", "--config", "configs/mom_large.py", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "--model.num-attn-modules" in done.stdout
    assert "runs/mom_large" in done.stdout


# Sizes.


@pytest.mark.parametrize(
    ("size", "layers", "parameters"),
    # Hugging Face's gpt2, gpt2-medium, gpt2-large: `model.num_parameters()`.
    [("small", 12, 124_439_808), ("medium", 24, 354_823_168), ("large", 36, 774_030_080)],
)
def test_gpt2_has_gpt2s_layers_and_parameters(size, layers, parameters):
    config = load(f"gpt2_{size}")
    [phase] = config.phases
    model = config.model_of(phase.name)
    assert parameter_count(model).total == parameters
    assert (model.num_layers, model.depth) == (layers, layers)
    assert model.kind("attention") == model.kind("ffn") == "ordered"


@pytest.mark.parametrize(
    ("name", "layers", "depth", "gain"),
    [
        ("paper_routing/small", 12, 17, 41.7),
        ("paper_routing/medium", 24, 34, 41.7),
        ("paper_routing/medium_wide", 24, 8, -66.7),
        ("paper_routing/large", 36, 12, -66.7),
        ("paper_routing/large_deep", 36, 50, 38.9),
        ("mom_small", 12, 12, 0),
        ("mom_medium", 24, 24, 0),
        ("mom_large", 36, 36, 0),
        ("mom_large_deep", 36, 50, 38.9),
    ],
)
def test_depths(name, layers, depth, gain):
    model = load(name).model
    assert (model.num_layers, model.depth) == (layers, depth)
    assert round(100 * (depth / layers - 1), 1) == gain


@pytest.mark.parametrize("name", ["paper_routing/small", "paper_routing/medium"])
def test_no_other_number_of_steps_is_nearer_to_the_deep_variants_gain_in_depth(name):
    deep, model = load("paper_routing/large_deep").model, load(name).model

    def distance(steps):
        depth = dataclasses.replace(model, num_steps=steps).depth
        return abs(depth / model.num_layers - deep.depth / deep.num_layers)

    assert min(range(1, 40), key=distance) == model.num_steps


@pytest.mark.parametrize("name", MOMS)
def test_a_mom_is_its_gpt2_and_routers(name):
    size = paper.MODELS[name]
    model, plain = load(name).model, load(f"gpt2_{size}").model
    grain = model.grain("ffn")
    assert model.num_attn_modules * grain == model.num_ffn_modules
    count = parameter_count(model)
    assert count.routers > 0
    # Each module of a cut FFN has a norm and an output bias of its own.
    cut = 3 * model.d_model * (grain - 1) * model.num_attn_modules * model.num_chunks
    assert count.total == parameter_count(plain).total + count.routers + cut
    # The very same configuration: with `--resume` phase 1 is taken over from a run of the GPT-2.
    assert model.vanilla() == plain


@pytest.mark.parametrize("name", OURS)
def test_ours_starts_as_the_gpt2_at_its_cost(name):
    model, plain = load(name).model, load(f"gpt2_{paper.MODELS[name]}").model
    assert (model.kind("attention"), model.kind("ffn"), model.skip) == ("ordered", "routed", False)
    if model.depth == plain.depth:
        ratio = forward_flops_per_token(model, 1024) / forward_flops_per_token(plain, 1024)
        assert 1 < ratio < 1.003
        layers = tuple(range(model.num_attn_modules))
        assert model.schedule("attention") == model.schedule("ffn") == layers
    else:
        assert model.schedule("attention") == model.schedule("ffn") == in_turn(model.num_attn_modules, model.num_steps)


def test_flops_of_the_wide_model_before_routers():
    model, plain = load("paper_routing/large").model, load("gpt2_large").model
    parts = forward_flops_by_part(model, 1024, causal=False)
    ratio = (sum(parts.values()) - parts["routers"]) / forward_flops_per_token(plain, 1024, causal=False)
    assert ratio == pytest.approx(0.837, abs=5e-4)


# Training.


@pytest.mark.parametrize("name", paper.MODELS)
def test_recipe(name):
    config = load(name)
    assert (config.data.batch_size, config.data.length) == (512, 1024)
    assert (config.model.dtype, config.model.dropout.active) == ("bfloat16", False)
    router = config.model.router
    if name in OURS:
        assert (router.kind, router.scoring, config.model.balance.weight) == ("linear", "sigmoid", 0.001)
        assert [phase.optim.router_multiplier for phase in config.phases] == [1.0, 3.0]
    elif name in PAPERS:
        assert (router.kind, router.dim, router.temperature) == ("gru", 256, 0.2)
        assert (config.model.skip, config.model.balance.weight) == (True, 0.01)
    rows = [(phase.name, phase.steps, phase.model, phase.init_from) for phase in config.phases]
    both = [("pretrain", 30_000, "vanilla", "scratch"), ("mom", 20_000, "model", "previous")]
    assert rows == (both if name in MOMS else both[:1])
    for phase in config.phases:
        optim = phase.optim
        assert (optim.learning_rate, optim.schedule, optim.warmup_steps) == (1e-3, "cosine", 2000)
        assert (optim.beta1, optim.beta2, optim.epsilon) == (0.9, 0.95, 1e-5)
        assert (optim.weight_decay, optim.clip_norm, optim.final_fraction) == (0.1, 1.0, 0.0)


@pytest.mark.parametrize("name", PRETRAINED)
def test_phase_two_of_a_pretrained_gpt2(name):
    config, same = load(name), PRETRAINED[name]
    if name.startswith("mom"):
        own = load(same).model
        # But for the routers' first weights: it starts as the GPT-2 to the last digit.
        assert config.model == dataclasses.replace(own, router=dataclasses.replace(own.router, score_init=0.0))
    else:
        free = {side: ChoiceConfig() for side in SIDES}
        assert dataclasses.replace(config.model, **free) == load(same).model
        for side in SIDES:
            choice = getattr(config.model, side)
            assert choice.preference > 0
            assert choice.anneal_steps == 2500
    [phase] = config.phases
    assert (phase.steps, phase.optim.warmup_steps, phase.model) == (5000, 500, "model")
    source = next(line for line in FILES[name].read_text().splitlines() if line.startswith("First: "))
    assert source.endswith(f"train.convert --input {source.split()[5]} --output {phase.init_from} --to vanilla")
    assert config.data.tokenizer == phase.init_from
    assert dataclasses.replace(config.data, tokenizer="sentencepiece") == load(same).data
    # The GPT-2 fits: nothing is missing, nothing left over.
    options = {"model_type": "gpt2", "vocab_size": 50257, "n_positions": 1024}
    gpt2 = config_from_gpt2(options | GPT2[paper.MODELS[same]])
    messages = []

    def take(vanilla):
        taken, dropped = from_vanilla(gpt2, vanilla, config.model, abstract_params(config.model))
        messages.extend(dropped)
        return taken["embed"]

    jax.eval_shape(take, abstract_params(gpt2))
    assert messages == []


def test_the_other_start_that_the_docstrings_name():
    flags = ["--model.attention.preference", "0", "--model.ffn.preference", "0"]
    for name in (name for name in PRETRAINED if name.startswith("paper")):
        assert " ".join(flags) in FILES[name].read_text()
        _, config = parse_config(argparse.ArgumentParser(add_help=False), ["--config", str(FILES[name]), *flags])
        assert [prior_table(config.model, side, 0) for side in SIDES] == [None, None]


# The table.


def test_the_table_as_text_has_every_model():
    lines = run_table().split("\n\n")[0].splitlines()
    assert [line.split()[0] for line in lines] == ["model", *paper.MODELS]
    rows = {line.split()[0]: line.split() for line in lines}
    # Parameters beside the paper's figure; the depth beside GFLOPs and both ratios.
    assert (rows["gpt2_small"][2], rows["gpt2_small"][-1]) == ("124,439,808", "122M")
    assert rows["gpt2_medium"][-1] == "-"
    large = rows["paper_routing/large"]
    assert (large[1], *large[-4:]) == ("12", "1.466", "0.895", "0.837", "774M")


def test_the_table_as_json_has_exact_numbers():
    rows = {row["model"]: row for row in json.loads(run_table("--json"))}
    assert list(rows) == list(paper.MODELS)
    for name, row in rows.items():
        parts = [row[part] for part in ("embedding", "anchors", "modules", "routers", "head")]
        assert sum(parts) == row["total"]
        plain = rows[f"gpt2_{paper.MODELS[name]}"]
        assert row["flops_ratio"] == row["flops"] / plain["flops"]
        assert (row["flops_ratio"] == 1) == (name not in MOMS)
        assert (row["flops_ratio_square"] == 1) == (row["depth"] == plain["depth"])
        assert row["reported"] == plain["reported"]
    reported = [rows[f"paper_routing/{size}"]["reported"] for size in paper.SIZES]
    assert reported == [122e6, None, 774e6]
    assert rows["paper_routing/large"]["flops"] == forward_flops_per_token(load("paper_routing/large").model, 1024)
    # GPT-2-large by hand: 36 layers of 12·D² weights and half a square of attention, the head; two FLOPs for a weight.
    assert rows["gpt2_large"]["flops"] == 2 * (36 * (12 * 1280**2 + 1280 * 1024) + 50257 * 1280)
    assert rows["paper_routing/large_deep"]["active"] == parameter_count(load("paper_routing/large_deep").model).active


@pytest.mark.parametrize("name", paper.MODELS)
def test_docstrings_have_the_numbers_of_the_table(name):
    rows = {row["model"]: row for row in paper.table()}
    row, plain = rows[name], rows[f"gpt2_{paper.MODELS[name]}"]
    text = " ".join(FILES[name].read_text().split('"""')[1].split())
    assert f"{row['total']:,} parameters, depth {row['depth']}" in text
    assert f"{row['flops'] / 1e9:.3f} forward GFLOPs per token at 1024 tokens" in text
    if name in MOMS:
        assert f"(GPT-2: {plain['depth']}" in text
        assert f"(GPT-2: {plain['flops'] / 1e9:.3f}" in text
    if "_large" in name and row["depth"] != plain["depth"]:
        for gain in (row["depth"] / plain["depth"] - 1, row["flops_ratio"] - 1):
            assert f", so {100 * gain:+.1f} %)" in text
    if name == "paper_routing/large":
        assert f"it is {100 * (row['flops_ratio_square'] - 1):+.1f} % here" in text
