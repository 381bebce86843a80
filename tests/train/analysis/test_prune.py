"""`train.convert --prune` and `train.analyse --prune-curve`: what is cut, what is written, and what is refused."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import tiny
from programs import call
from small import random_params

from mom_jax.analysis import pruning
from mom_jax.config import ChoiceConfig
from mom_jax.fields import ConfigError
from train import convert, generate, main
from train.analysis.prune_curve import Point, PruneCurve, alike, mean_table, measure, share_of, table
from train.analysis.prune_run import parse_shares
from train.analysis.removal import Ranking, Removal, first_tokens
from train.checkpoints import single_file
from train.checkpoints.models import open_model, write_run
from train.checkpoints.run_config import read_config
from train.data.pipeline import validation_batches
from train.data.prepared import prepare
from train.evaluate import main as evaluation
from train.reporting import metrics

pytestmark = pytest.mark.usefixtures("shared_steps")


def model_of(folder):
    """tiny's experiment with four modules a side."""
    config = tiny.config(folder)
    model = dataclasses.replace(config.model, num_attn_modules=4, num_ffn_modules=4, top_k=3, dispatch="dense")
    return dataclasses.replace(config, model=model)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(the run's folder, its configuration)."""
    folder = tmp_path_factory.mktemp("run")
    config = model_of(folder)
    params = jax.tree.map(np.asarray, random_params(config.model))
    tokenizer = prepare(config.data).tokenizer
    write_run(folder / "run", "mom", config.model, params, tokenizer, config)
    return folder / "run", config


def pruned(capsys, source, output, shares, *flags):
    code, out, err = call(capsys, convert.main, "--input", source, "--output", output, "--prune", shares, *flags)
    assert code == 0, err
    return out, err


def held_out_loss(capsys, checkpoint):
    code, out, err = call(capsys, evaluation, "--checkpoint", checkpoint, "--json")
    assert code == 0, err
    return json.loads(out)["loss"]


@pytest.mark.slow
def test_a_pruned_run_is_the_full_one_with_modules_forbidden(run, tmp_path, capsys):
    source, config = run
    out, err = pruned(capsys, source, tmp_path / "pruned", "attn=0.5,ffn=0.25")
    model, full = open_model(tmp_path / "pruned", field="path"), open_model(source, field="path")
    assert (model.config.num_attn_modules, model.config.num_ffn_modules) == (2, 3)
    assert model.config == dataclasses.replace(config.model, num_attn_modules=2, num_ffn_modules=3)
    assert read_config(tmp_path / "pruned", "path").data == config.data
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(own.params)) for own in (model, full)]
    assert out == f"{tmp_path / 'pruned'}: {sizes[0]:,} parameters, of {sizes[1]:,}\n"
    assert "attention: 2 of 4 modules cut, by loss: " in err
    assert "ffn: 1 of 4 modules cut, by loss: " in err

    # Which modules: those without which the loss rises least, measured here one by one.
    prepared = prepare(config.data)
    batches = first_tokens(validation_batches(prepared, dataclasses.replace(config.data, batch_size=8)), 65536)
    removal = Removal(full.params, config.model, batches)
    without = {}
    for side in ("attention", "ffn"):
        rest = [[m for m in range(4) if m != gone] for gone in range(4)]
        without[side] = [removal.loss({side: [kept]}) for kept in rest]
    keep = {
        "attention": [sorted(np.argsort(without["attention"])[2:].tolist())],
        "ffn": [sorted(np.argsort(without["ffn"])[1:].tolist())],
    }
    want = pruning.prune(config.model, full.params, keep)[1]
    jax.tree.map(np.testing.assert_array_equal, model.params, want)
    loss = held_out_loss(capsys, tmp_path / "pruned")
    assert loss == pytest.approx(removal.loss(keep), abs=1e-5)
    assert abs(loss - removal.loss()) > 1e-3
    assert f"loss {removal.loss():.4f} -> {loss:.4f} nats/token" in err

    # And the curve, which needs no other program.
    compiled = programs()
    curve = measure(removal, ("usage", "loss"))
    assert programs() == compiled
    assert {name: [tuple(p.cut.values()) for p in points] for name, points in curve.curves.items()} == {
        "attention": [(0,), (1,), (2,), (3,)],
        "ffn": [(0,), (1,), (2,), (3,)],
        "both": [(0, 0), (1, 1), (2, 2), (3, 3)],
    }
    assert curve.paper.cut == {"attention": 2, "ffn": 1}
    assert curve.paper.losses["loss"] == pytest.approx(loss, abs=1e-5)
    assert curve.curves["ffn"][1].losses["loss"] == pytest.approx(min(without["ffn"]))
    usage = curve.rankings["usage"]
    choices = np.asarray(removal.sums({}).routing.attention.choices_C)[0].sum(0)
    np.testing.assert_allclose(usage.scores["attention"][0], choices[:4] / choices.sum())
    assert usage.order["attention"] == [np.argsort(choices[:4], kind="stable").tolist()]
    lines = table(curve).splitlines()
    assert lines[0].startswith("| cut")
    assert [line.split("|")[1].strip() for line in lines[2:]] == [
        *("nothing", *["attention"] * 3, *["FFN"] * 3, *["both sides"] * 3, "**the paper's point**")
    ]
    assert f"{curve.paper.losses['loss']:.4f}" in lines[-1]
    json.dumps(curve.record(), allow_nan=False)


def test_the_mean_of_several_curves():
    def curve(loss, rises, modules=3):
        points = [Point({"ffn": cut}, {"loss": loss + rise}) for cut, rise in enumerate(rises)]
        return PruneCurve(loss, 100, {"ffn": modules}, 1, {"loss": Ranking("loss", {}, {})}, {"ffn": points}, points[1])

    one, other = curve(4.0, [0.0, 0.25, 0.5]), curve(5.0, [0.0, 0.75, np.inf])
    assert alike([one, other])
    assert not alike([one])
    assert not alike([one, curve(4.0, [0.0, 0.25, 0.5], modules=4)])
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in mean_table([one, other]).splitlines()]
    assert [cells[0], *cells[2:]] == [
        ["cut", "FFN modules left", "by loss, nats/token"],
        ["nothing", "3", "4.5000 ± 0.7071"],
        ["FFN", "2", "+0.5000 ± 0.3536"],
        ["FFN", "1", "+inf"],
        ["**the paper's point**", "2", "+0.5000 ± 0.3536"],
    ]


def programs():
    from train.steps.evaluation_step import evaluation_step

    return evaluation_step._cache_size()


@pytest.mark.slow
def test_a_pruned_run_is_trained_on_and_read_by_all_programs(run, tmp_path, capsys):
    source, _ = run
    pruned(capsys, source, tmp_path / "pruned", "attention=.5", "--rank", "similarity", "--data.tokens", "2000")
    config = read_config(tmp_path / "pruned", "path")
    assert (config.model.num_attn_modules, config.model.num_ffn_modules) == (2, 4)
    file = tmp_path / "recover.py"
    file.write_text(
        "import dataclasses\nfrom pathlib import Path\n\nfrom train.checkpoints.run_config import read_config\n"
        "from train.config import Phase\n\n\ndef get_config():\n"
        f"    config = read_config(Path({str(tmp_path / 'pruned')!r}), 'run')\n"
        f"    phase = Phase('recovered', 3, init_from={str(tmp_path / 'pruned')!r})\n"
        f"    return dataclasses.replace(config, phases=(phase,), run={str(tmp_path / 'run')!r})\n"
    )
    before = held_out_loss(capsys, tmp_path / "pruned")
    code, _, err = call(capsys, main.main, "--config", file)
    assert code == 0, err
    assert f"starting from {tmp_path / 'pruned'}" in err
    records = [r for r in metrics.read(tmp_path / "run" / "metrics.jsonl") if r["kind"] == "train"]
    assert [r["step"] for r in records] == [1, 2, 3]
    assert records[0]["loss"] == pytest.approx(before, abs=1.0)
    assert held_out_loss(capsys, tmp_path / "run") < before
    flags = ("--checkpoint", tmp_path / "pruned", "--prompt", "alpha", "--tokens", 3)
    code, out, err = call(capsys, generate.main, *flags)
    assert code == 0, err
    assert out.startswith("alpha")


@pytest.mark.slow
def test_a_single_file_is_pruned_on_a_source(run, tmp_path, capsys):
    source, config = run
    model = open_model(source, field="path")
    single_file.save(tmp_path / "model.safetensors", model.config, model.params, model.fingerprint)
    flags = ("--rank", "usage", "--data.source", config.data.source, "--tokenizer", source)
    _, err = pruned(capsys, tmp_path / "model.safetensors", tmp_path / "pruned", "ffn=0.5", *flags)
    assert "ffn: 2 of 4 modules cut, by usage" in err
    assert open_model(tmp_path / "pruned", field="path").config.num_ffn_modules == 2


@pytest.mark.parametrize(
    ("shares", "flags", "expected"),
    [
        ("attn=1", (), "prune='attn=1': would cut all 4 attention modules; at least one must stay"),
        ("attn=0.75", (), "prune='attn=0.75': modules of attention=1: must be at least 2 of 4"),
        ("attn=0.2", (), "prune='attn=0.2': cuts no module: the least that can go is 1/4 of attention"),
        ("attn=1.5", (), "prune='attn=1.5': the share of attn must lie between 0 and 1"),
        ("ffn=-0.5", (), "prune='ffn=-0.5': the share of ffn must lie between 0 and 1"),
        ("heads=0.5", (), "prune='heads=0.5': unknown side 'heads'; known names: attention, attn, ffn"),
        ("attn", (), "prune='attn': must be shares to cut, as in attn=0.5,ffn=0.25"),
        ("attn=half", (), "prune='attn=half': must be shares to cut"),
        ("attn=nan", (), "prune='attn=nan': must be shares to cut"),
        ("", (), "prune='': must be shares to cut"),
        ("attn=0.5,", (), "prune='attn=0.5,': must be shares to cut"),
        ("attn=0.5,attention=0.5", (), "names attention twice"),
        ("attn=0.5", ("--to", "safetensors"), "to='safetensors': give either --to or --prune"),
        ("attn=0.5", ("--config", "x.py"), "config='x.py': goes with --to mom, and only so"),
        ("attn=0.5", ("--data.source", "text:/none/*.txt"), "data.source"),
        ("attn=0.5", ("--data.tokens", "0"), "tokens=0: must be at least 1"),
    ],
)
def test_what_cannot_be_cut_is_one_line_and_nothing_is_written(run, tmp_path, capsys, shares, flags, expected):
    arguments = ("--input", run[0], "--output", tmp_path / "out", "--prune", shares, *flags)
    code, out, err = call(capsys, convert.main, *arguments)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith("error: ")
    assert expected in err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "shares", "expected"),
    [
        (
            {"attention": ChoiceConfig(choice="ordered"), "num_steps": 4},
            "attn=0.5",
            "prune='attn=0.5': attention is not routed: the model's routers choose ffn modules only",
        ),
        ({"num_chunks": 0}, "ffn=0.5", "has no routers, and so no modules to prune"),
        ({"num_attn_modules": 1}, "ffn=0.5,attn=0.5", "attention is not routed"),
    ],
)
def test_models_without_routers_are_one_line(run, tmp_path, capsys, changes, shares, expected):
    source, config = run
    model = dataclasses.replace(config.model, **changes)
    params = jax.tree.map(np.asarray, random_params(model))
    tokenizer = open_model(source, field="path").tokenizer
    write_run(tmp_path / "in", "mom", model, params, tokenizer, config)
    for out in ("out", "in"):
        flags = ("--input", tmp_path / "in", "--output", tmp_path / out, "--prune", shares)
        code, _, err = call(capsys, convert.main, *flags)
        assert code == 2
        assert (expected if out == "out" else "is there already") in err.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_flags_of_pruning_go_with_it_only(run, tmp_path, capsys):
    for flags, expected in (
        ((), "to=None: give either --to or --prune"),
        (("--to", "official", "--rank", "usage"), "rank='usage': goes with --prune only"),
        (("--to", "official", "--data.tokens", 7), "goes with --prune only"),
    ):
        code, _, err = call(capsys, convert.main, "--input", run[0], "--output", tmp_path / "out", *flags)
        assert code == 2
        assert expected in err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_shares():
    assert parse_shares("attn=0.5, ffn=.25") == {"attention": 0.5, "ffn": 0.25}
    assert parse_shares("ffn=1e-1") == {"ffn": 0.1}
    assert [share_of(10, share) for share in (0.3, 0.29, 0.7, 1, 0)] == [3, 2, 7, 10, 0]
    assert share_of(100, 0.29) == 29  # in floating point 0.29 · 100 is less
    for text in ("attn=inf", "attn=1_0", "attn=0.5=0.5"):
        with pytest.raises(ConfigError, match="must be shares to cut"):
            parse_shares(text)
