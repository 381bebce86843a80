"""A router of the user's own, in a file of his own (cosine_router.py): registered, trained, evaluated, pruned."""

import json
import sys
from pathlib import Path

import pytest
from programs import ROOT, call

from mom_jax.config.router import KINDS
from train import convert, evaluate, generate, main
from train.reporting import metrics

pytestmark = pytest.mark.usefixtures("shared_steps")
FILE = Path(__file__).parent / "cosine_router.py"


@pytest.fixture
def unregistered(monkeypatch):
    """As at the start of each program: nothing of the file is known."""

    def forget():
        monkeypatch.delitem(KINDS, "cosine", raising=False)
        monkeypatch.delitem(sys.modules, "cosine_router", raising=False)

    forget()
    yield forget
    forget()


@pytest.mark.slow
def test_it_is_trained_evaluated_and_generated_from(tmp_path, capsys, unregistered):
    experiment, run = tmp_path / "experiment.py", tmp_path / "run"
    experiment.write_text(
        "from pathlib import Path\n\nimport tiny\n\nfrom train.config import Phase\n\n\ndef get_config():\n"
        f"    return tiny.config(Path({str(tmp_path)!r}), phases=(Phase('mom', 3),))\n"
    )
    flags = "--config", experiment, "--model.router.kind", "cosine"
    code, _, err = call(capsys, main.main, *flags)
    assert code == 2
    assert "must be a registered router: linear, mlp, gru" in " ".join(err.split())
    assert not run.exists()

    code, _, err = call(capsys, main.main, *flags, "--import", FILE)
    assert code == 0, err
    final = metrics.read(run / "metrics.jsonl")[-1]
    assert final["loss"] < 6  # of log 300 = 5.7 nats
    assert set(final["routers"]) == {"attention", "ffn"}

    unregistered()
    code, _, err = call(capsys, evaluate.main, "--checkpoint", run)
    assert code == 2
    assert "router.kind='cosine': must be a registered router" in err
    assert len(err.splitlines()) == 1
    code, out, err = call(capsys, evaluate.main, "--checkpoint", run, "--import", FILE, "--json", "--limit", 2)
    assert code == 0, err
    assert json.loads(out)["loss"] == pytest.approx(final["loss"], abs=1e-6)
    code, out, err = call(capsys, generate.main, "--checkpoint", run, "--tokens", 4, "--prompt", "alpha beta")
    assert code == 0, err
    assert out.startswith("alpha beta")
    flags = "--input", run, "--prune", "ffn=0.34", "--rank", "usage", "--data.tokens", 64, "--import", FILE
    code, _, err = call(capsys, convert.main, *flags, "--output", tmp_path / "pruned")
    assert code == 0, err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import nothing_of_this_name", "line 1: ModuleNotFoundError: No module named 'nothing_of_this_name'"),
        ("from mom_jax.routers import register\nregister('gru')(int)", "line 2: TypeError: register('gru'): <class"),
        (
            "from mom_jax.routers import Router, register\n@register('gru')\nclass Mine(Router): pass",
            "kind='gru': is the name of Gru already",
        ),
        (None, "no such file"),
    ],
)
def test_what_cannot_be_imported(text, message, tmp_path, capsys):
    file = tmp_path / "users_router.py"
    if text is not None:
        file.write_text(text)
    code, _, err = call(capsys, generate.main, "--checkpoint", tmp_path, "--import", file)
    sys.modules.pop("users_router", None)
    assert code == 2
    assert err.startswith(f"error: import='{file}'")
    assert message in err
    assert len(err.splitlines()) == 1


def test_the_documentation_shows_this_file():
    assert FILE.read_text() in (ROOT / "docs" / "routers.md").read_text()
    assert len(FILE.read_text().splitlines()) < 60
