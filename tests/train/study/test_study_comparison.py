"""Arms side by side: paired differences, their intervals and verdicts, and their course."""

import numpy as np
import pytest
from scipy import stats
from study_results import result

from train.config import Config, Phase
from train.study import Arm, Study
from train.study.comparison import curve_differences, paired, rows, worth_of_choices
from train.study.plan import make_plan
from train.study.records import write_result
from train.study.table import against, write_table


def test_intervals_are_those_of_a_paired_t_test():
    rng = np.random.default_rng(0)
    ours, base = rng.normal(4, 0.1, 5), rng.normal(4.2, 0.1, 5)
    found = paired(dict(enumerate(ours)), dict(enumerate(base)))
    theirs = stats.ttest_rel(ours, base).confidence_interval(0.95)
    assert found.interval == pytest.approx(theirs)
    assert found.mean == pytest.approx((ours - base).mean())
    assert paired({0: 1.0, 1: 3.0}, {1: 1.0, 2: 5.0}).mean == 2.0  # of the seed that both have
    assert paired({0: 1.0}, {0: 1.5}).interval is None
    assert paired({0: 1.0}, {1: 1.0}) is None
    assert paired({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0}).interval == (0.0, 0.0)


def test_verdicts_come_from_the_interval():
    losses = {
        "base": [4.0, 4.1, 4.2],
        "lower": [3.9, 4.0, 4.101],
        "higher": [4.1, 4.2, 4.301],
        "mixed": [3.9, 4.2, 4.2],
        "broken": [3.0, None, 3.0],
        "one": [3.0],
    }
    results = [result(arm, seed, loss) for arm, own in losses.items() for seed, loss in enumerate(own)]
    found = {row.arm: row for row in rows(results, dict.fromkeys([*losses, "absent"], "base"))}
    verdicts = {arm: row.verdict for arm, row in found.items()}
    expected = ["", "better", "worse", "not separated", "diverged", ""]
    assert verdicts == dict(zip(losses, expected, strict=True))
    # Of metrics more is better.
    assert found["lower"].difference.verdict(higher_is_better=True) == "worse"


def test_differences_of_curves_are_those_of_a_seed_at_a_step():
    def run(arm, seed, *losses):
        return result(arm, seed, losses[-1], curve=[[100 * (i + 1), loss] for i, loss in enumerate(losses)])

    base = [run("base", 0, 4.5, 4.0, 3.5), run("base", 2, 4.0, 3.0)]
    own = [run("own", 0, 4.25, 4.125), run("own", 1, 1.0, 1.0), run("own", 2, 5.0, None, 3.0)]
    assert curve_differences(own, base) == [{100: -0.25, 200: 0.125}, {100: 1.0}]
    assert curve_differences(own, ()) == []


def test_what_choices_are_worth_is_the_exchanged_loss_over_the_normal_one():
    made = {"normal": [4.0, 4.5], "exchanged": [4.5, 4.5]}
    assert worth_of_choices(result("a", 0, 4.0, exchanged=made)) == pytest.approx(0.25)
    assert worth_of_choices(result("a", 0, 4.0)) is None
    assert worth_of_choices(result("a", 0, 4.0, exchanged={"normal": [4.0], "exchanged": [None]})) is None


def test_losses_and_differences_stand_in_the_table_seed_by_seed(tmp_path):
    def lines_of(text):
        table = text[text.index("| loss (difference) by seed") :].split("\n\n")[0]
        return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]

    arms = (Arm("vanilla", {"phases.mom.model": "vanilla"}), Arm("one"), Arm("broken", {"model.top_k": 2}))
    base = {"small": Config(phases=(Phase("mom", 4),))}
    plan = make_plan(Study(name="trial", question="Which?", base=base, arms=arms, seeds=(0, 1, 2)), "small", tmp_path)
    routers = {"ffn": {"entropy": 1.0}}
    for arm, seed, loss in (("vanilla", 0, 4.5), ("vanilla", 2, 4.25), ("one", 0, 4.0), ("broken", 0, None)):
        made = {} if arm == "vanilla" else {"exchanged": {"normal": [4.0], "exchanged": [4.125]}, "routers": routers}
        write_result(plan, result(arm, seed, loss, **made))
    write_result(plan, result("one", 1, 4.75))
    text = write_table(plan)
    header, _, *rest = lines_of(text)
    assert header == ["loss (difference) by seed", "0", "1", "2"]
    assert rest == [
        ["vanilla", "4.5000", "-", "4.2500"],
        ["one", "4.0000 (-0.5000)", "4.7500", "-"],
        ["broken", "-", "-", "-"],
    ]
    assert lines_of(against(plan, "one"))[2][1:] == ["4.5000 (+0.5000)", "-", "4.2500"]
    [line] = [line for line in text.splitlines() if line.startswith("| one") and "1.000" in line]
    assert [cell.strip() for cell in line.strip("|").split("|")][-1] == "0.125"
