"""`train.convert` and `checkpoint.load`: every format in and out, bit for bit, and what is refused."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from programs import call
from safetensors.numpy import load_file, save_file
from small import random_params
from small_gpt2 import write_gpt2

from mom_jax.config import ModelConfig
from mom_jax.fields import ConfigError
from train import checkpoint, convert, generate, main
from train.checkpoints.models import load
from train.reporting import metrics

pytestmark = pytest.mark.usefixtures("shared_steps")

STORED = Path(__file__).parents[2] / "goldens" / "gpt2"
OPTIONS = {"model_type": "gpt2", "n_positions": 32, "n_embd": 16, "n_head": 2, "n_layer": 4}
IDS = np.random.default_rng(0).integers(0, 256, (2, 8)).astype(np.int32)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    return write_gpt2(tmp_path_factory.mktemp("gpt2"), OPTIONS)


def converted(capsys, source, target, to, *flags):
    code, out, err = call(capsys, convert.main, "--input", source, "--output", target, "--to", to, *flags)
    assert code == 0, err
    assert "parameters" in out
    return target


def logits(path):
    model, _ = load(path)
    return np.asarray(jax.jit(lambda: model(IDS).logits)())


def arrays(path):
    """Everything that a model is made of, by name."""
    model = checkpoint.open_model(path, field="path")
    leaves = jax.tree_util.tree_leaves_with_path(model.params)
    return {jax.tree_util.keystr(name): np.asarray(leaf) for name, leaf in leaves}


def assert_same_model(a, b):
    one, other = arrays(a), arrays(b)
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.mark.parametrize("name", ["tied", "untied", "scaled_by_layer"])
def test_a_gpt2_of_transformers_is_loaded_as_it_is(tmp_path, name):
    said = []
    with np.load(STORED / f"{name}.npz") as file:
        state = {key.removeprefix("state/"): a for key, a in file.items() if key.startswith("state/")}
        ids, expected = file["ids"], file["logits"]
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(json.loads((STORED / f"{name}.json").read_text())["config"]))
    model, tokenizer = load(tmp_path, notify=said.append)
    np.testing.assert_allclose(model(ids).logits, expected, rtol=0, atol=1e-5)
    assert tokenizer is None
    assert said == [f"{tmp_path}: a GPT-2 of Hugging Face"]


def test_round_trips_are_exact(gpt2, tmp_path, capsys):
    run = converted(capsys, gpt2, tmp_path / "run", "vanilla")
    file = converted(capsys, run, tmp_path / "deep" / "model.safetensors", "safetensors")
    back = converted(capsys, file, tmp_path / "back", "huggingface", "--tokenizer", run)
    again = converted(capsys, back, tmp_path / "again", "vanilla")
    for place in (run, file, back, again):
        assert_same_model(gpt2, place)
        np.testing.assert_allclose(logits(place), logits(gpt2), atol=1e-6)
    one, other = (load_file(folder / "model.safetensors") for folder in (gpt2, back))
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])
    options = [json.loads((folder / "config.json").read_text()) for folder in (gpt2, back)]
    assert options[1] == options[0] | dict.fromkeys((), 0) | {
        name: options[1][name] for name in ("bos_token_id", "eos_token_id")
    }
    fingerprints = {load(folder)[1].fingerprint for folder in (gpt2, run, back, again)}
    assert len(fingerprints) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "back", "deep", "run"]


def mom_config(folder, tokenizer, **changes):
    """A file with an experiment whose model takes the GPT-2's four layers."""
    file = folder / "experiment.py"
    file.write_text(
        "import dataclasses\n\nfrom mom_jax.interop.phases import preserving\nfrom train.config import Phase\n\n"
        "import tiny\n\n\ndef get_config():\n"
        f"    config = tiny.config(__import__('pathlib').Path({str(folder)!r}))\n"
        "    model = dataclasses.replace(config.model, vocab_size=0, num_bottom=1, num_top=1, num_attn_modules=2,\n"
        f"        num_ffn_modules=2, num_steps=3, **{changes!r})\n"
        f"    data = dataclasses.replace(config.data, tokenizer={str(tokenizer)!r})\n"
        f"    phase = Phase('mom', 4, init_from={str(tokenizer)!r})\n"
        "    return dataclasses.replace(config, model=preserving(model, 4), data=data, phases=(phase,))\n"
    )
    return file


@pytest.mark.slow
def test_a_gpt2_becomes_a_mom_and_trains(gpt2, tmp_path, capsys):
    run = converted(capsys, gpt2, tmp_path / "gpt2", "vanilla")
    file = mom_config(tmp_path, run)
    start = converted(capsys, gpt2, tmp_path / "start", "mom", "--config", file)
    assert load(start)[0].config.num_steps == 3
    np.testing.assert_allclose(logits(start), logits(gpt2), atol=1e-3)
    code, _, err = call(capsys, main.main, "--config", file)
    assert code == 0, err
    assert f"starting from {run}" in err
    records = [r for r in metrics.read(tmp_path / "run" / "metrics.jsonl") if r["kind"] == "train"]
    assert [r["step"] for r in records] == [1, 2, 3, 4]
    code, out, err = call(capsys, generate.main, "--checkpoint", gpt2, "--prompt", "alpha beta", "--tokens", 4)
    assert code == 0, err
    assert out.startswith("alpha beta")


def test_a_mom_to_the_authors_code_and_to_a_file_and_back(tmp_path, capsys):
    config = ModelConfig.official(
        vocab_size=50, context_length=16, d_model=8, num_heads=2, num_attn_modules=2, num_ffn_modules=2, num_steps=2
    )
    params = jax.tree.map(np.asarray, random_params(config))
    from train.checkpoints import single_file

    single_file.save(tmp_path / "mom.safetensors", config, params, "some fingerprint")
    folder = converted(capsys, tmp_path / "mom.safetensors", tmp_path / "official", "official")
    assert_same_model(tmp_path / "mom.safetensors", folder)
    model = checkpoint.open_model(folder, field="path")
    assert model.description == "a checkpoint of the authors' code"
    assert dataclasses.replace(model.config, dropout=config.dropout) == config
    again = converted(capsys, folder, tmp_path / "again.safetensors", "safetensors")
    assert_same_model(folder, again)
    code, _, err = call(capsys, convert.main, "--input", again, "--output", tmp_path / "hf", "--to", "huggingface")
    assert code == 2
    assert "the format 'safetensors' holds it" in err
    assert not (tmp_path / "hf").exists()


def copy(gpt2, folder, **options):
    import shutil

    shutil.copytree(gpt2, folder)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | options))
    return folder


def cut(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def without(*names):
    def remove(folder):
        for name in names:
            (folder / name).unlink()

    return remove


@pytest.mark.parametrize(
    ("options", "damage", "expected"),
    [
        ({}, cut, "model.safetensors': is no whole safetensors file"),
        ({}, without("model.safetensors"), "has no weights (model.safetensors or pytorch_model.bin)"),
        ({}, without("vocab.json", "merges.txt"), "has no tokenizer; give one with --tokenizer"),
        ({"model_type": "llama"}, None, "model_type='llama': only 'gpt2' is supported"),
        ({"n_layer": 3}, None, "transformer.h.3.attn.c_attn.bias (48,) is surplus"),
        ({"n_embd": 8}, None, "has the shape"),
        ({"tie_word_embeddings": False}, None, "lm_head.weight"),
        ({"scale_attn_weights": False}, None, "scale_attn_weights=False: only True is supported"),
        ({"vocab_size": 20}, None, "has the shape"),
    ],
)
def test_what_cannot_be_read_is_one_line_and_nothing_is_written(gpt2, tmp_path, capsys, options, damage, expected):
    folder = copy(gpt2, tmp_path / "in", **options)
    if damage is not None:
        damage(folder)
    code, out, err = call(capsys, convert.main, "--input", folder, "--output", tmp_path / "out", "--to", "vanilla")
    assert (code, out) == (2, "")
    last = err.splitlines()[-1]
    assert last.startswith("error: input")
    assert expected in last
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--to", "mom"), "config=None: goes with --to mom, and only so"),
        (("--to", "safetensors"), "must end with .safetensors"),
        (("--to", "vanilla", "--tokenizer", "/none"), "tokenizer='/none'"),
    ],
)
def test_wrong_flags_are_one_line(gpt2, tmp_path, capsys, flags, expected):
    code, out, err = call(capsys, convert.main, "--input", gpt2, "--output", tmp_path / "out", *flags)
    assert (code, out) == (2, "")
    assert expected in err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_is_there_is_left_alone(gpt2, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    code, _, err = call(capsys, convert.main, "--input", gpt2, "--output", tmp_path / "out", "--to", "vanilla")
    assert code == 2
    assert err == f"error: output='{tmp_path}/out': is there already\n"


@pytest.mark.parametrize(("to", "name"), [("safetensors", "file/out.safetensors"), ("huggingface", "file/out")])
def test_an_output_that_cannot_be_written(gpt2, tmp_path, capsys, to, name):
    (tmp_path / "file").touch()
    code, _, err = call(capsys, convert.main, "--input", gpt2, "--output", tmp_path / name, "--to", to)
    assert code == 2
    assert err.splitlines()[-1].startswith(f"error: output='{tmp_path}/{name}': cannot be written (")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_more_modules_than_layers(gpt2, tmp_path, capsys):
    file = mom_config(tmp_path, gpt2, num_chunks=2)
    flags = ("--input", gpt2, "--output", tmp_path / "out", "--to", "mom", "--config", file)
    code, _, err = call(capsys, convert.main, *flags)
    assert code == 2
    assert "the vanilla model has 4 layers, 6 fit; layers are missing for" in err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_a_pickled_state_dict_and_one_in_shards(gpt2, tmp_path):
    torch = pytest.importorskip("torch")
    state = {name: torch.from_numpy(a) for name, a in load_file(gpt2 / "model.safetensors").items()}
    pickled, sharded, foul = (copy(gpt2, tmp_path / name) for name in ("pickled", "sharded", "foul"))
    for folder in (pickled, sharded, foul):
        (folder / "model.safetensors").unlink()
    torch.save(state, pickled / "pytorch_model.bin")
    names = list(state)
    parts = {"a.bin": names[::2], "b.bin": names[1::2]}
    for part, own in parts.items():
        torch.save({name: state[name].to(torch.float32) for name in own}, sharded / part)
    index = {"weight_map": {name: part for part, own in parts.items() for name in own}}
    (sharded / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    for folder in (pickled, sharded):
        assert_same_model(gpt2, folder)

    class Program:
        def __reduce__(self):
            return (open, (str(tmp_path / "was here"), "w"))

    torch.save({"wte.weight": Program()}, foul / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="is no whole state dict of tensors only"):
        load(foul)
    assert not (tmp_path / "was here").exists()
