"""Maps: losses of arms by two of their properties."""

import dataclasses

import pytest
from study_results import result

from configs.studies import shape
from mom_jax.fields import ConfigError
from train.config import Config, Phase
from train.study import Arm, Map, Study
from train.study.plan import make_plan
from train.study.records import write_result
from train.study.table import write_table

CELLS = {("1", "2"): "a", ("1", "4"): "b", ("2", "4"): "c", ("3", "2"): "a"}
OWN = Map("all of them", "H", "K", CELLS)


def study(**fields):
    base = {"small": Config(phases=(Phase("train", 4),))}
    arms = tuple(Arm(name, {"data.length": 64 + i}) for i, name in enumerate("abc"))
    return Study(**{"name": "trial", "question": "Which?", "base": base, "arms": arms, "maps": (OWN,), **fields})


def test_a_map_has_the_losses_of_its_arms(tmp_path):
    plan = make_plan(study(), "small", tmp_path)
    assert "all of them" not in write_table(plan)
    assert not (plan.folder / "maps.png").exists()
    for arm, seed, loss in (("a", 0, 4.0), ("a", 1, 4.5), ("c", 0, None)):
        write_result(plan, result(arm, seed, loss))
    lines = write_table(plan).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("| all of them"))
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[start : start + 5]]
    assert [cells[0], *cells[2:]] == [
        ["all of them", "K: 2", "K: 4"],
        ["H: 1", "4.2500 ± 0.3536", "-"],  # b has not been run
        ["H: 2", "-", "-"],  # there is no such arm; the loss is no number
        ["H: 3", "4.2500 ± 0.3536", "-"],
    ]
    assert (plan.folder / "maps.png").read_bytes().startswith(b"\x89PNG")


def test_a_map_of_nothing_but_losses_that_are_no_numbers_is_drawn(tmp_path):
    plan = make_plan(study(), "small", tmp_path)
    write_result(plan, result("a", 0, None))
    write_table(plan)
    assert (plan.folder / "maps.png").exists()


def test_a_map_of_unknown_arms_is_refused():
    lost = dataclasses.replace(OWN, arms={("1", "2"): "d"})
    with pytest.raises(ConfigError, match="maps='d': must be an arm"):
        study(maps=(lost,))


def test_the_maps_of_shapes_are_of_equal_parameters_and_of_equal_flops():
    """By the configurations: parts of all FFNs, and parts that a token takes times their width and number of steps."""
    own = shape.get_study()
    configs = {name: config.model for name, config in own.configs("small").items()}
    parameters, flops = own.maps
    widths = {
        name: model.inner_width if model.module_d_ff is None else model.module_d_ff for name, model in configs.items()
    }
    assert {configs[arm].num_ffn_modules * widths[arm] for arm in parameters.arms.values()} == {6 * 512}
    assert {configs[arm].num_steps * configs[arm].side_top_k("ffn") * widths[arm] for arm in flops.arms.values()} == {
        6 * 512
    }
    assert {configs[arm].num_steps for arm in flops.arms.values()} == {3, 6, 12}
