"""Commands and blocks of code of the pages, run in a folder where the files lie that they name, on a tiny experiment.

What is not run stands in not_executed.toml with the reason.
"""

import contextlib
import io
import shutil
import sys
import tomllib
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import tiny
from flax import nnx
from pages import ROOT, blocks, commands
from small_gpt2 import write_gpt2
from test_commands import program

import mom_jax as mom
from mom_jax.config.router import KINDS
from train import cli
from train.checkpoint import load

LISTED = tomllib.loads((Path(__file__).parent / "not_executed.toml").read_text("utf-8"))
NOT_COMMANDS = tuple(start for reason in LISTED.values() for start in reason.get("commands", ()))
NOT_BLOCKS = tuple(part for reason in LISTED.values() for part in reason.get("blocks", ()))
WHOLE = [command for command in commands() if command.whole]
RUN = [command for command in WHOLE if not command.text.startswith(NOT_COMMANDS)]
# Blocks of shell are commands; all else is code, if it is not listed.
CODE = [b for b in blocks() if not any(part in b.text for part in NOT_BLOCKS)]
PYTHON = [b for b in CODE if b.language == "python"]


def test_what_is_listed_stands_in_a_page():
    texts = [command.text for command in WHOLE]
    for start in NOT_COMMANDS:
        assert any(text.startswith(start) for text in texts), f"not_executed.toml: no page has {start!r} any more"
    for part in NOT_BLOCKS:
        assert any(part in block.text for block in blocks()), f"not_executed.toml: no page has {part!r} any more"


def test_every_block_is_shell_or_python_or_listed():
    shell = {(command.page, command.line) for command in WHOLE}
    for block in CODE:
        known = block.language == "python" or (block.page, block.line) in shell
        assert known or block.text.startswith("freeze_until="), f"{block.page}, line {block.line}: {block.text[:60]!r}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the pages' commands find in the working folder, the models made by the pages' own commands."""
    place = tmp_path_factory.mktemp("pages")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr(cli, "prepare_process", lambda: None)
        patch.setattr(cli, "keep_freed_memory", lambda: None)
        patch.syspath_prepend(str(place))
        for name in ("books", "other"):
            tiny.write_corpus(place / name, 12)
        shutil.copy(ROOT / "README.md", place)
        experiment = tiny.write_config(place / "tiny")
        # As long a context, and as many modules, as the commands ask for.
        text = experiment.read_text().replace("def get_config", "def short")
        experiment.write_text(
            f"import dataclasses\n{text}\n\ndef get_config():\n    config = short()\n"
            "    sizes = {'context_length': 1024, 'num_attn_modules': 4, 'num_ffn_modules': 4}\n"
            "    model = dataclasses.replace(config.model, **sizes)\n"
            "    return dataclasses.replace(config, model=model, evaluate_every=9)\n"
        )
        find, ours = cli.find_experiment, ("quickstart", "configs/quickstart.py")
        patch.setattr(cli, "find_experiment", lambda name, *r: find(str(experiment) if name in ours else name, *r))
        options = {"model_type": "gpt2", "n_positions": 1024, "n_embd": 16, "n_head": 2, "n_layer": 2}
        write_gpt2(place / "gpt2", options)
        first = next(c for c in RUN if c.text.startswith("mom train --config quickstart --run runs/mine"))
        run(first)
        for name in ("RUN", "RUN2", "A", "B", "runs/quickstart"):
            shutil.copytree(place / "runs" / "mine", place / name)
        shutil.copytree(place / "tiny" / "cache", place / "CACHE")
        yield place


def run(command):
    """Runs a command's program in this process; raises AssertionError where it ends with an error."""
    name, arguments = program(command.words)
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", [name, *arguments])
        module = __import__(name, fromlist=["main"])
        with pytest.raises(SystemExit) as end:
            cli.run_program(lambda: module.main(arguments))
    said = f"{command.page}, line {command.line}: {command.text}\n{out.getvalue()}{err.getvalue()}"
    assert end.value.code in (0, None), said
    return out.getvalue()


@pytest.mark.slow
@pytest.mark.usefixtures("shared_steps")
def test_commands_run(folder):
    done, failed = set(), []
    for command in sorted(RUN, key=order):
        same = repr(program(command.words))  # `mom convert` and `python -m train.convert` make the same
        if same not in done and not command.text.startswith("mom train --config quickstart --run"):
            try:
                run(command)
            except AssertionError as error:
                failed.append(str(error))
            done.add(same)
    assert not failed, "\n".join(failed)
    assert len(done) > 25
    assert (folder / "runs" / "pruned" / "config.json").exists()
    assert (folder / "RUN" / "report.html").exists()


def order(command):
    """What makes something comes before what reads it."""
    return not any(word in command.text for word in (" convert ", ".convert ")), "PRUNED" in command.text


@pytest.mark.slow
@pytest.mark.usefixtures("shared_steps")
@pytest.mark.parametrize("block", PYTHON, ids=lambda block: f"{block.page}:{block.line}")
def test_python_runs(block, folder, monkeypatch):
    """In a namespace with what the page says that there is."""
    monkeypatch.delitem(KINDS, "cosine", raising=False)
    monkeypatch.delitem(KINDS, "per_step", raising=False)
    model, tokenizer = load("RUN")
    ids = jnp.asarray([list(range(3, 19))], jnp.int32)
    space = {"mom": mom, "model": model, "tokenizer": tokenizer, "ids": ids, "model_config": model.config}
    (folder / "RUN" / "numbers").mkdir(exist_ok=True)
    jnp.savez(folder / "RUN" / "numbers" / "PHASE-STEP.npz", tokens=ids)
    (folder / "RUN" / "numbers" / "PHASE-STEP.json").write_text("{}")
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(block.text, f"{block.page}:{block.line}", "exec"), space)
        for name in ("get_config", "get_study"):
            if name in space and "pruned" not in block.text:
                space[name]()
        if "@register" in block.text:
            kind = next(name for name in ("cosine", "per_step") if name in KINDS)
            config = mom.ModelConfig(
                vocab_size=32,
                d_model=16,
                num_heads=2,
                num_steps=2,
                num_bottom=0,
                num_top=0,
                router=mom.RouterConfig(kind=kind, dim=8),
            )
            logits = nnx.jit(lambda model, ids: model(ids).logits)(mom.MoM(config, rngs=nnx.Rngs(0)), ids)
            assert jnp.isfinite(logits).all()
            KINDS.pop(kind)


@pytest.mark.slow
def test_the_example_of_a_loop_learns(folder, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    import own_loop

    # As users have it: optax raises a float to the power of a counter.
    with contextlib.redirect_stdout(io.StringIO()), jax.numpy_dtype_promotion("standard"):
        losses = own_loop.main("README.md", steps=12)
    assert losses[0] == pytest.approx(5.55, abs=0.1)  # log 256
    assert losses[-1] < losses[0] - 0.5
    assert jax.tree.all(jax.tree.map(lambda x: x == x, losses))
