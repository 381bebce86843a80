"""Arms side by side: paired differences, their intervals and verdicts, and their course."""

import numpy as np
import pytest
from scipy import stats
from study_results import result

from train.study.comparison import curve_differences, paired, rows


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
