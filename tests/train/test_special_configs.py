"""`train.main` runs every configuration under configs/special, narrow and for a few steps."""

import json

import pytest
import tiny
from programs import ROOT, call

from train import main
from train.checkpoints.run_config import read_config
from train.cli import load_config
from train.reporting import metrics

pytestmark = pytest.mark.usefixtures("shared_steps")

FILES = {
    path.stem: path
    for path in sorted((ROOT / "configs" / "special").glob("*.py"))
    if "def get_config" in path.read_text()
}
DEFAULT = "scheduled"
FLAGS = """
--data.vocab-size 300 --data.batch-size 4 --data.length 12 --data.validation-fraction 0.2 --data.validation-batches 1
--model.d-model 16 --model.num-heads 2 --model.num-bottom 0 --model.num-top 0
--model.router.dim 8 --model.remat none --phases.0.steps 3 --phases.0.optim.warmup-steps 1 --final-batches 1
--evaluate-every 10 --checkpoint.every 10 --analysis.every 0
""".split()  # noqa: SIM905


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("special")
    return "--data.source", tiny.write_corpus(folder / "corpus"), "--data.cache", folder / "cache"


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name if name == DEFAULT else pytest.param(name, marks=pytest.mark.slow) for name in FILES]
)
def test_train_main_runs_it(name, corpus, tmp_path, capsys):
    file, folder = FILES[name], tmp_path / "run"
    # Where a prompt fills the context there is no sample, whose programs would take as long to compile as the step.
    context = 24 if name == DEFAULT else 12
    flags = *corpus, *FLAGS, "--model.context-length", context
    if load_config(str(file)).model.module_d_ff:
        flags = *flags, "--model.module-d-ff", 16
    code, _, err = call(capsys, main.main, "--config", file, "--run", folder, *flags)
    assert code == 0, err
    records = metrics.read(folder / "metrics.jsonl")
    assert [(r["kind"], r["step"]) for r in records[:3]] == [("train", 1), ("train", 2), ("train", 3)]
    assert records[-1]["kind"] == "final"
    assert records[-1]["loss"] < 6  # of log 300 = 5.7 nats
    model = read_config(folder, "run").model
    assert [("capacity_loss" in r) for r in records[:3]] == [model.has_capacity] * 3
    assert set(records[0].get("routers", {})) == set(model.routed_sides)
    for side in model.routed_sides:
        # What a file says of choices is what the run had.
        assert getattr(model, side) == getattr(load_config(str(file)).model, side)
    json.dumps(records, allow_nan=False)


@pytest.mark.parametrize("name", FILES)
def test_a_file_names_its_command_and_its_run(name):
    assert f"\nCommand: python -m train.main --config configs/special/{name}.py\n" in FILES[name].read_text()
    assert load_config(str(FILES[name])).run == f"runs/special/{name}"


def test_every_file_is_in_the_documentation():
    text = (ROOT / "docs" / "special_cases.md").read_text()
    for name in FILES:
        assert f"configs/special/{name}.py" in text
