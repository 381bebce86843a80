"""What `--dry-run` says of the time that a study takes."""

import pytest
from programs import ROOT, call
from study_results import result

from train.config import Config, Phase
from train.study import Arm, Study
from train.study.__main__ import main
from train.study.listing import listing
from train.study.plan import fingerprint, make_plan
from train.study.records import write_result
from train.study.speeds import Speed, write_measure

FIRST, SECOND = 3600, 1800  # steps; 2,048 tokens each
ARMS = (Arm("vanilla", {"phases.mom.model": "vanilla"}), Arm("one", {"model.top_k": 1}))


@pytest.fixture
def plan(tmp_path):
    phases = (Phase("pretrain", FIRST, model="vanilla"), Phase("mom", SECOND, init_from="previous"))
    return make_plan(
        Study(name="trial", question="Which?", base={"small": Config(phases=phases)}, arms=ARMS), "small", tmp_path
    )


def finish(plan, seconds):
    """Results of all runs, in so many seconds each by arm."""
    for run in plan.runs:
        own = {
            "fingerprint": fingerprint(plan.configs[run.arm]),
            "run": str(run.folder.relative_to(plan.folder.parent)),
        }
        start = {"run": str(run.start.run), "loss": 4.5}
        tokens = SECOND * run.config.data.batch_size * run.config.data.length
        write_result(
            plan, result(*run.key, 4.0, own_tokens=tokens, seconds=seconds[run.arm], first_phase=[start], **own)
        )


def last_line(plan):
    return listing(plan, plan.runs).splitlines()[-1]


def test_what_a_study_would_take_from_nothing(plan):
    seeds = len(plan.study.seeds)
    assert "not known before `--measure`" in last_line(plan)
    finish(plan, {"vanilla": 360.0, "one": 720.0})
    # The first phase, which all share, has twice the steps of an arm's own, at the vanilla model's speed.
    assert f" about {2 * 0.1 + seeds * (0.1 + 0.2):.2f} hours" in last_line(plan)
    assert "All runs are finished" in last_line(plan)


def test_what_was_measured_side_by_side_counts_more_than_how_long_runs_took(plan):
    seeds = len(plan.study.seeds)
    finish(plan, {"vanilla": 360.0, "one": 36000.0})
    tokens = plan.runs[0].config.data.batch_size * plan.runs[0].config.data.length
    speeds = {"vanilla": Speed([0.1], tokens, 1, 1, True), "one": Speed([0.4], tokens, 1, 1, True)}
    write_measure(plan, speeds)
    assert f" about {2 * 0.05 + seeds * (0.05 + 0.2):.2f} hours" in last_line(plan)


def test_what_a_task_needs_is_said_before_its_runs_are_listed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    file = ROOT / "configs" / "studies" / "ratings" / "main.py"
    code, output, error = call(capsys, main, file, "--dry-run")
    assert (code, output, error.count("\n")) == (2, "", 1)
    assert "is not there, and study 'main' needs it; run: pip download" in error
    assert not list(tmp_path.iterdir())
