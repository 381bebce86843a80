"""What a study consists of: changes, arms, runs that share a first phase, results, intervals, tables."""

import dataclasses
import json
from pathlib import Path

import chex
import pytest
import tiny
from programs import ROOT, call
from study_results import result

from configs.studies import start, two_arms
from mom_jax.config import ChoiceConfig, RouterConfig
from mom_jax.fields import ConfigError
from mom_jax.sharding import make_mesh
from train.config import Config, OptimConfig, Phase
from train.steps.state import abstract_params
from train.study import Arm, Study, changed, measure, running, table
from train.study.__main__ import main
from train.study.comparison import rows
from train.study.listing import listing
from train.study.plan import dealt, fingerprint, make_plan
from train.study.records import forget, found_elsewhere, read_results, trained_in, write_result, write_study
from train.study.running import check_sources
from train.study.table import against, write_table
from train.training.run import Busy, claimed

BASE = Config(phases=(Phase("pretrain", 6, "vanilla"), Phase("mom", 4, init_from="previous")))


def study(*arms, **fields):
    arms = arms or (Arm("vanilla", {"phases.mom.model": "vanilla"}), Arm("K=1", {"model.top_k": 1}))
    return Study(**{"name": "trial", "question": "Which?", "base": {"small": BASE}, "arms": arms, **fields})


def test_changes_are_made_at_once():
    new = changed(
        BASE,
        {
            "model.num_attn_modules": 6,
            "model.num_steps": 6,
            "model.ffn.choice": "ordered",
            "model.num_ffn_modules": 6,
            "phases.mom.optim.router_multiplier": 3.0,
            "phases.0.steps": 7,
            "phases.-1.steps": 9,
            "data.seed": 4,
        },
    )
    model = dataclasses.replace(
        BASE.model, num_attn_modules=6, num_ffn_modules=6, num_steps=6, ffn=ChoiceConfig(choice="ordered")
    )
    phases = (
        Phase("pretrain", 7, "vanilla"),
        Phase("mom", 9, init_from="previous", optim=OptimConfig(router_multiplier=3.0)),
    )
    expected = dataclasses.replace(BASE, model=model, phases=phases, data=dataclasses.replace(BASE.data, seed=4))
    assert new == expected


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"model.topk": 2}, "model.topk: unknown field; did you mean 'top_k'?"),
        ({"model.top_k": 0}, "model.top_k=0: must be at least 1"),
        ({"phases.third.steps": 2}, "phases.third: no such row; there are pretrain, mom, or their numbers"),
        ({"phases.2.steps": 2}, "phases.2: no such row"),
        ({"phases.mom.steps": "many"}, "phases.mom.steps='many': must be an integer"),
        ({"model.router": RouterConfig(), "model.router.dim": 4}, "'router' is changed as a whole, too"),
        ({"model.router.dim": 4, "model.router": RouterConfig()}, "is changed twice"),
        ({"seed.x": 1}, "seed.x: unknown field; seed has no fields"),
    ],
)
def test_changes_that_cannot_be(changes, problem):
    with pytest.raises(ConfigError) as error:
        changed(BASE, changes)
    assert problem in str(error.value)


def test_arms():
    half = lambda config: changed(config, {"phases.mom.steps": config.phases[-1].steps // 2})  # noqa: E731
    assert Arm("a", half).config(BASE).phases[-1].steps == 2
    both = Arm("a", ({"phases.mom.steps": 8}, half)).config(BASE)
    assert both.phases[-1].steps == 4
    alone = Arm("scratch", {"phases.0.steps": 3}, phases=(Phase("train", 2),)).config(BASE)
    assert alone.phases == (Phase("train", 3),)
    with pytest.raises(ConfigError, match=r"arm 'a': model.top_k=0"):
        Arm("a", {"model.top_k": 0}).config(BASE)
    with pytest.raises(ConfigError, match="arm 'a': its change must return a Config"):
        Arm("a", lambda config: None).config(BASE)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"name": "a b"}, "name='a b'"),
        ({"baseline": "vanila"}, "did you mean 'vanilla'?"),
        ({"arms": (Arm("x"), Arm("y", baseline="z"))}, "arm 'y': baseline='z': must be an arm"),
        ({"seeds": ()}, "seeds=()"),
        ({"seeds": (1, 1)}, "must be different"),
        ({"seeds": {"full": (0,)}}, "must be for small"),
        ({"arms": (Arm("K=1"), Arm("k=1"))}, "must have names that differ"),
        ({"arms": ()}, "must have at least one"),
    ],
)
def test_studies_that_cannot_be(fields, problem):
    with pytest.raises(ConfigError) as error:
        Study(**{"name": "trial", "question": "Which?", "base": {"small": BASE}, "arms": study().arms, **fields})
    assert problem in str(error.value)


def test_first_phases_are_shared_where_they_are_the_same():
    plan = make_plan(
        study(
            Arm("vanilla", {"phases.mom.model": "vanilla"}),
            Arm("K=2", {"model.top_k": 2}),
            Arm("other router", {"model.router": RouterConfig("mlp"), "model.skip": False}),
            Arm("deep", {"model.num_steps": 11}),
            Arm("more modules", {"model.num_attn_modules": 5, "model.num_ffn_modules": 5}),
            Arm("longer", {"phases.pretrain.steps": 7}),
            Arm("scratch", phases=(Phase("train", 10),)),
            Arm("elsewhere", {"phases.mom.init_from": "runs/other"}),
            seeds=(0, 3),
        ),
        "small",
        Path("out"),
    )
    first = {run.arm: run.start and run.start.run for run in plan.runs if run.seed == 0}
    assert first["vanilla"] == first["K=2"] == first["other router"] == first["deep"]
    assert len({first[name] for name in ("vanilla", "more modules", "longer")}) == 3
    assert first["scratch"] is None
    assert [run.seed for run in plan.runs] == [0] * 8 + [3] * 8  # pairs are complete early
    by_key = {run.key: run for run in plan.runs}
    for run in plan.runs:
        assert (run.config.seed, run.config.data.seed) == (run.seed, run.seed + 1)
        assert run.start is None or (run.start.seed, run.start.data.seed) == (0, 0)
    assert by_key["K=2", 3].config.phases[0].init_from == first["K=2"] == by_key["K=2", 3].start.run
    assert by_key["elsewhere", 0].config.phases[0].init_from == "runs/other"
    assert by_key["scratch", 0].config.phases == (Phase("train", 10),)
    # A first phase is no other because it is evaluated more often; elsewhere the settings of the data count.
    seldom, other = (changed(BASE, change) for change in ({"evaluate_every": 7}, {"data.length": 64}))
    assert fingerprint(seldom) == fingerprint(BASE) != fingerprint(other)


def test_first_phases_with_seeds_of_their_own():
    plan = make_plan(study(first_phase_seeded=True, seeds=(0, 2)), "small", Path("out"))
    starts = {run.seed: run.start for run in plan.runs}
    assert [(start.seed, start.data.seed) for start in starts.values()] == [(0, 0), (2, 2)]
    assert len({run.start.run for run in plan.runs}) == 2


def test_runs_are_dealt_out():
    runs = make_plan(study(seeds=(0, 1, 2)), "small", Path("out")).runs
    shards = [dealt(runs, f"{i}/4") for i in range(1, 5)]
    assert [len(shard) for shard in shards] == [2, 2, 1, 1]
    assert {run.key for shard in shards for run in shard} == {run.key for run in runs}
    for wrong in ("3/2", "0/2", "1", "a/b", "1/0"):
        with pytest.raises(ConfigError, match="must be I/N"):
            dealt(runs, wrong)


def test_arms_have_baselines_of_their_own(tmp_path):
    arms = (
        Arm("vanilla, fr", baseline="vanilla, fr"),
        Arm("K=1, fr", baseline="vanilla, fr"),
        Arm("vanilla, de"),
        Arm("K=1, de"),
    )
    losses = {"vanilla, fr": (4.0, 5.0), "K=1, fr": (4.5, 5.25), "vanilla, de": (2.0, 2.5), "K=1, de": (1.5, 1.75)}
    plan = make_plan(study(*arms, baseline="vanilla, de", seeds=(0, 1)), "small", tmp_path)
    for arm, own in losses.items():
        for seed, loss in enumerate(own):
            done = {"rating": {"settings": {}, "metrics": {"accuracy": 10 * loss}}}
            write_result(plan, result(arm, seed, loss, after=done))
    differences = {
        row.arm: row.difference and row.difference.mean for row in rows(read_results(plan.folder), plan.study.baselines)
    }
    assert differences == {"vanilla, fr": None, "K=1, fr": 0.375, "vanilla, de": None, "K=1, de": -0.625}
    text = write_table(plan)
    assert "baselines: 'vanilla, fr' of 'K=1, fr'; 'vanilla, de' of 'K=1, de'." in text
    other = against(plan, "K=1, fr")
    assert "baseline: K=1, fr." in other
    assert [line.split("|")[4].strip() for line in other.splitlines() if line.startswith(("| K", "| v"))][:4] == [
        "-0.3750",
        "-",
        "-2.6250",
        "-3.2500",
    ]
    # What was done after the runs is in the table of any study of that name, and compared alike.
    task = " ".join(text[text.index("| rating") :].split())
    assert "| 48.75 ± 5.30 | +3.75 |" in task
    assert "| 16.25 ± 1.77 | -6.25 |" in task
    # With which nothing was done is not in it.
    write_result(plan, result("K=1, fr", 0, 4.5))
    write_result(plan, result("K=1, fr", 1, 5.25))
    text = write_table(plan)
    assert "K=1, de" in text[text.index("| rating") :]
    assert "K=1, fr" not in text[text.index("| rating") :]


def test_nothing_is_trained_without_what_a_study_needs(tmp_path, capsys):
    file = write_file(tmp_path)
    needs = f"arms, needs={{{str(tmp_path / 'texts')!r}: 'run: make texts'}}, "
    file.write_text(file.read_text().replace("arms, seeds", f"{needs}seeds"))
    code, _, error = call(capsys, main, file, "--out", tmp_path / "out")
    assert (code, error) == (2, f"error: {tmp_path}/texts: is not there, and study 'trial' needs it; run: make texts\n")
    assert not (tmp_path / "out").exists()
    code, output, _ = call(capsys, main, file, "--out", tmp_path / "out", "--dry-run")
    assert code == 0
    assert "to do" in output


def test_results_and_tables(tmp_path):
    arms = (Arm("vanilla", {"phases.mom.model": "vanilla"}), Arm("K=1", {"model.top_k": 1}), Arm("K=2"))
    plan = make_plan(study(*arms, seeds=(0, 1)), "small", tmp_path)
    write_study(plan)
    assert "No run is finished" in write_table(plan)
    side = {"entropy": 1.25, "off_diagonal": 0.5, "skip": 0.125, "taken": 0.875, "dropped": 0.0, "churn": None}
    routers = {"ffn": side}
    for arm, seed, loss in (("K=1", 1, 4.25), ("vanilla", 0, 4.5), ("K=1", 0, 4.0), ("vanilla", 1, 4.75)):
        write_result(plan, result(arm, seed, loss, routers=routers if arm == "K=1" else {}))
    assert [(r["arm"], r["seed"]) for r in read_results(plan.folder)] == [
        ("vanilla", 0),
        ("K=1", 0),
        ("vanilla", 1),
        ("K=1", 1),
    ]
    write_result(plan, result("vanilla", 0, 4.5, parameters=1001))  # in its place
    assert len(read_results(plan.folder)) == 4
    text = write_table(plan)
    [line] = [line for line in text.splitlines() if line.startswith("| K=1") and "4.1250" in line]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[:6] == ["K=1", "2", "4.1250 ± 0.1768", "-0.5000", "-0.5000 to -0.5000", "better"]
    assert cells[6:] == ["1,000", "900", "2.000", "5,000"]
    assert "- / 50.0%" in text
    assert "K=2" not in text
    assert "similarity" not in text
    for seed, first in ((0, 0.5), (1, 0.25)):
        curve = [[100, first], [200, first / 2]]
        write_result(plan, result("K=1", seed, 4.0, routers=routers, similarity={"ffn": curve}))
    [line] = [line for line in write_table(plan).splitlines() if "0.375 to 0.188" in line]
    assert [cell.strip() for cell in line.strip("|").split("|")][:2] == ["K=1", "-"]
    written = (plan.folder / "table.md").read_bytes()
    other = against(plan, "K=1")
    assert "baseline: K=1." in other
    line, _ = [line for line in other.splitlines() if line.startswith("| vanilla")]  # the other one is of its seeds
    assert [cell.strip() for cell in line.strip("|").split("|")][3:6] == [
        "+0.6250",
        "-0.9633 to +2.2133",
        "not separated",
    ]
    with pytest.raises(ConfigError, match="baseline='K': must be an arm"):
        against(plan, "K")
    assert (plan.folder / "table.md").read_bytes() == written
    for picture in ("plot.png", "curves.png"):
        assert (plan.folder / picture).read_bytes().startswith(b"\x89PNG")
    measured = {"vanilla": {"tokens_per_s": 2000.0, "speed_ratio": 1.0, "peak_bytes": 5_000_000}}
    (plan.folder / "measure.json").write_text(json.dumps({"arms": measured}))
    assert "2,000" in write_table(plan)


def test_a_table_has_what_another_process_has_just_added(tmp_path, monkeypatch):
    """Two parts of a study that end together: whoever writes the table last has read all results."""
    plan = make_plan(study(), "small", tmp_path)
    write_result(plan, result("vanilla", 0, 4.5))
    lock = table.locked

    def locked(folder):
        write_result(plan, result("K=1", 0, 4.25))
        return lock(folder)

    monkeypatch.setattr(table, "locked", locked)
    assert "4.2500" in write_table(plan)
    assert "4.2500" in (plan.folder / "table.md").read_text()


def test_arms_that_are_taught(tmp_path):
    """By the shared first phase, whose new parameters serve to measure a step before it is trained, or by any run."""
    base = tiny.config(tmp_path)
    taught = Arm("taught", {"phases.mom.distill": "previous"})
    plan = make_plan(study(Arm("plain"), taught, base={"small": base}, baseline="plain", seeds=(0,)), "small", tmp_path)
    plain, own = plan.runs
    assert own.config.phases[0].distill == own.start.run == plain.start.run
    check_sources([own])
    mesh = make_mesh()
    assert measure._teacher(plain, plain.config, plain.folder, "", mesh) is None
    teacher = measure._teacher(own, own.config, own.folder, "", mesh)
    assert teacher.teaching.model.num_steps == own.start.model_of("pretrain").num_steps
    chex.assert_trees_all_equal_shapes_and_dtypes(teacher.params, abstract_params(teacher.teaching.model))
    gone = Arm("gone", {"phases.mom.distill": str(tmp_path / "gone")})
    lost = make_plan(study(gone, base={"small": base}, baseline="gone", seeds=(0,)), "small", tmp_path).runs
    with pytest.raises(ConfigError, match=r"arm 'gone': phases\.mom\.distill='.*gone': no such folder"):
        check_sources(lost)


def test_the_study_s_files_are_plain(tmp_path):
    """What a prior forbids is no number of JSON's; and a link in place of the lock leads nowhere."""
    never = ((0.0, 0.0, 0.0, float("-inf"), 0.0),) * 8
    arms = (Arm("vanilla"), Arm("forbidden", {"model.ffn": ChoiceConfig(prior=never)}))
    plan = make_plan(study(*arms), "small", tmp_path)
    write_study(plan)
    write_study(plan)  # what is read is the same study
    text = (plan.folder / "study.json").read_text()
    json.loads(text, parse_constant=pytest.fail)
    own = tmp_path / "letter.txt"
    own.write_text("dear all")
    (plan.folder / ".lock").unlink()
    (plan.folder / ".lock").symlink_to(own)
    with pytest.raises(ConfigError, match=r"\.lock' must be a plain file"):
        write_study(plan)
    assert own.read_text() == "dear all"


def test_a_changed_study_is_refused(tmp_path):
    plan = make_plan(study(), "small", tmp_path)
    write_study(plan)
    write_result(plan, result("K=1", 0, 4.0))

    def again(*arms, **fields):
        write_study(make_plan(study(*arms, **fields), "small", tmp_path))

    vanilla = study().arms[0]
    again(vanilla, Arm("K=1", {"model.top_k": 1}), Arm("K=3", {"model.top_k": 3}), seeds=(0, 1, 2, 3))
    with pytest.raises(ConfigError, match=r"arm 'K=1': has changed .*model.router.dim: 256 -> 64"):
        again(vanilla, Arm("K=1", {"model.top_k": 1, "model.router.dim": 64}))
    with pytest.raises(ConfigError, match=r"arm 'K=1': has changed .*final_batches: 0 -> 5"):
        again(vanilla, Arm("K=1", {"model.top_k": 1, "final_batches": 5}))
    with pytest.raises(ConfigError, match="first_phase_seeded: False -> True"):
        again(first_phase_seeded=True)
    again(vanilla, Arm("K=1", {"model.top_k": 1}), Arm("K=3", {"model.top_k": 2}))  # has no results yet


def test_fresh_forgets_an_arm_and_leaves_the_others(tmp_path):
    plan = make_plan(study(), "small", tmp_path)
    write_study(plan)
    for run in plan.runs:
        run.folder.mkdir(parents=True)
        write_result(plan, result(*run.key, 4.0))
    shared = Path(plan.runs[0].start.run)
    shared.mkdir(parents=True)
    other = make_plan(study(study().arms[0], Arm("K=1", {"model.top_k": 2})), "small", tmp_path)
    forget(other, ["K=1"])
    write_study(other)  # which is refused otherwise
    assert {row["arm"] for row in read_results(plan.folder)} == {"vanilla"}
    assert {run.arm for run in plan.runs if run.folder.exists()} == {"vanilla"}
    assert shared.exists()
    elsewhere = dataclasses.replace(BASE, run=str(tmp_path / "trial-small" / "runs" / "vanilla" / "seed-7"))
    with claimed(elsewhere), pytest.raises(Busy, match="seed-7"):
        forget(plan, ["vanilla"])
    assert len(read_results(plan.folder)) == 3


class Counted:
    """Something to do after a run."""

    name = "task"

    def __init__(self, setting):
        self.setting, self.done = setting, []

    def settings(self):
        return {"setting": self.setting, "seeds": (1, 2)}

    def __call__(self, run, seed):
        self.done.append((run.name, seed))
        return {"accuracy": 50.0 + seed}


def test_what_is_busy_is_waited_for_and_what_follows_is_done_once(tmp_path, monkeypatch):
    """Of `run_all` alone: training is replaced by what it says when another process has the folder."""
    task = Counted(1)
    plan = make_plan(study(after=(task,), seeds=(0, 1)), "small", tmp_path)
    trained, waits = [], []

    def train(config):
        name = Path(config.run).relative_to(tmp_path).parts[0]
        if name == "shared" and len(waits) < 2:
            raise Busy("another process has it")
        trained.append(Path(config.run))
        trained[-1].mkdir(parents=True)

    monkeypatch.setattr(running, "train", train)
    monkeypatch.setattr(running, "final_record", lambda config: {} if Path(config.run).is_dir() else None)
    monkeypatch.setattr(running, "result_of", lambda run, whole, root: result(run.arm, run.seed, 4.0))
    monkeypatch.setattr(running.time, "sleep", waits.append)
    assert running.run_all(plan, plan.runs, lambda text: None) is None
    assert waits == [running.WAIT_SECONDS] * 2
    assert trained == [Path(plan.runs[0].start.run), *(run.folder for run in plan.runs)]
    assert task.done == [(f"seed-{run.seed}", run.seed) for run in plan.runs]
    assert running.run_all(plan, plan.runs, lambda text: None) is None
    assert len(task.done) == 4  # not again
    # Results may be kept without their runs: what needs one trains it again.
    lost = plan.runs[1].folder
    lost.rmdir()
    assert running.run_all(plan, plan.runs, lambda text: None) is None
    assert len(trained) == 5
    other = make_plan(study(after=(Counted(2),), seeds=(0, 1)), "small", tmp_path)
    assert running.run_all(other, other.runs, lambda text: None) is None
    assert trained[5:] == [lost]
    assert len(other.study.after[0].done) == 4
    assert "50.50 ± 0.71" in write_table(other)


def test_a_run_that_another_study_has_trained_is_not_trained_again(tmp_path, monkeypatch):
    first = make_plan(study(seeds=(0,), after=(Counted(1),)), "small", tmp_path)
    for run in first.runs:
        fields = {"fingerprint": fingerprint(first.configs[run.arm]), "run": str(run.folder.relative_to(tmp_path))}
        start = {"run": str(Path(run.start.run).relative_to(tmp_path)), "loss": 4.5}
        run.folder.mkdir(parents=True)
        write_result(first, result(*run.key, 4.0, first_phase=[start], after={"task": {}}, **fields))
    trained, task = [], Counted(1)
    arms = (Arm("one", {"model.top_k": 1}), Arm("two", {"model.top_k": 2}))
    second = make_plan(study(*arms, name="other", after=(task,), seeds=(0, 1)), "small", tmp_path)
    monkeypatch.setattr(running, "train", lambda config: trained.append(Path(config.run)))
    monkeypatch.setattr(running, "final_record", lambda config: {} if Path(config.run) in trained else None)
    monkeypatch.setattr(running, "result_of", lambda run, whole, root: result(run.arm, run.seed, 5.0))
    text = listing(second, second.runs)
    assert "in trial-small" in text
    assert "4 of 5 runs to train" in text  # three, and what they start from
    assert "pretrain" not in listing(second, second.runs[:1])  # none of these needs one
    said = []
    assert running.run_all(second, second.runs, said.append) is None
    assert {row["arm"]: row["loss"] for row in read_results(second.folder) if row["seed"] == 0} == {
        "one": 4.0,
        "two": 5.0,
    }
    assert "one, seed 0: the run trial-small/runs/K=1/seed-0 is the same" in said
    assert not second.runs[0].folder.exists()
    assert trained_in(second, second.runs[0]) == first.runs[1].folder
    assert trained_in(second, second.runs[1]) == second.runs[1].folder
    assert len(task.done) == 4  # what the other study did after it does not count

    # What is left to do with a run needs it; its result does not.
    first.runs[1].folder.rmdir()
    more = make_plan(study(*arms, name="more", after=(task,), seeds=(0,)), "small", tmp_path)
    less = dataclasses.replace(more, study=dataclasses.replace(more.study, after=()))
    assert found_elsewhere(more, more.runs[0]) is None
    assert found_elsewhere(less, less.runs[0]) is not None

    # What a study has from another is no third one's.
    third = make_plan(study(*arms, name="third", seeds=(0,)), "small", tmp_path)
    assert found_elsewhere(third, third.runs[0]) is not None
    results = (first.folder / "results.jsonl").read_bytes()
    (first.folder / "results.jsonl").unlink()
    assert found_elsewhere(third, third.runs[0]) is None

    (first.folder / "results.jsonl").write_bytes(results)
    trained.clear()
    forget(second, ["one"])
    assert running.run_all(second, second.runs[:1], said.append, anew=True) is None  # as with `--fresh`
    assert second.runs[0].folder in trained


def write_file(folder, text="", seeds=(0, 1)):
    tiny.config(folder)
    file = folder / "study_file.py"
    file.write_text(
        "from pathlib import Path\n\nimport tiny\n\nfrom train.study import Arm, Study\n\n\ndef get_study():\n"
        f"    base = tiny.config(Path({str(folder)!r}), source={f'text:{folder}/corpus/*.txt'!r})\n"
        f"    arms = (Arm('vanilla', {{'phases.mom.model': 'vanilla'}}), Arm('K=1', {{'model.top_k': 1}}){text})\n"
        f"    return Study('trial', 'Which?', {{'small': base}}, arms, seeds={seeds})\n"
    )
    return file


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--only", "vanila"], "only='vanila': no such arm; did you mean 'vanilla'?"),
        (["--size", "smal"], "size='smal': unknown; did you mean 'small'?"),
        (["--shard", "3/2"], "shard='3/2': must be I/N"),
        (["--fresh", "--table"], "one of these at a time"),
        (["--against", "vanilla"], "against='vanilla': goes with --table"),
        (["--fresh", "--shard", "1/2"], "not with --shard"),
        (["--measure", "--rounds", "0"], "rounds=0: must be at least 1"),
    ],
)
def test_wrong_flags(tmp_path, capsys, flags, problem):
    code, _, error = call(capsys, main, write_file(tmp_path), "--out", tmp_path / "out", *flags)
    assert code == 2
    assert problem in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_wrong_files(tmp_path, capsys):
    out = ("--out", tmp_path / "out")
    for text, problem in (
        (", Arm('lost', {'phases.mom.init_from': 'runs/nowhere'})", "arm 'lost': phases.mom.init_from='runs/nowhere'"),
        (", Arm('x', {'model.topk': 1})", "arm 'x': model.topk: unknown field"),
        (", 1 / 0", "line 10: ZeroDivisionError"),
    ):
        code, _, error = call(capsys, main, write_file(tmp_path, text), *out)
        assert (code, error.count("\n")) == (2, 1)
        assert problem in error
    for file, problem in (
        (tmp_path / "none.py", "no such file"),
        (tiny.write_config(tmp_path), "must define get_study() -> train.study.definition.Study"),
    ):
        code, _, error = call(capsys, main, file, *out)
        assert (code, error.count("\n")) == (2, 1)
        assert problem in error
    assert not (tmp_path / "out").exists()


def test_the_studies_of_this_repository_can_be_planned(tmp_path, capsys):
    files = [file for file in (ROOT / "configs" / "studies").glob("*.py") if "def get_study()" in file.read_text()]
    assert len(files) > 3
    for file in sorted(files):
        code, output, error = call(capsys, main, file, "--out", tmp_path, "--dry-run")
        assert (code, error) == (0, "")
        assert "to do" in output
    assert not list(tmp_path.iterdir())
    arms = start.get_study().configs("small")
    assert arms["paper, K=1"].model.ffn.preference == 0 < arms["preserving, K=1"].model.ffn.preference
    assert arms["preserving, K=2"].model.ffn.anneal_steps == 175
    assert two_arms.get_study().baseline == "vanilla"
