"""What a study keeps: whatever changes in such a file, or is none, is noticed by whoever reads it."""

import json

import pytest
from study_results import result

from mom_jax.fields import ConfigError
from train.files import to_json, with_checksum
from train.study.definition import load_study
from train.study.plan import make_plan
from train.study.records import check_study, read_results, write_study
from train.study.speeds import MEASURE, read_measure


def test_every_flipped_bit_of_a_study_s_result_is_noticed(tmp_path):
    file = tmp_path / "results.jsonl"
    rows = [result(arm, 0, 4.25) for arm in ("vanilla", "ours")]
    content = b"".join(to_json(with_checksum(row)) for row in rows)
    file.write_bytes(content)
    assert read_results(tmp_path) == rows
    for place in range(0, len(content), 2):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 7
        file.write_bytes(changed)
        with pytest.raises(ConfigError, match=r"line [12]: "):
            read_results(tmp_path)
    file.write_bytes(content[:-9])
    with pytest.raises(ConfigError, match="line 2: is no whole result of a study"):
        read_results(tmp_path)


@pytest.mark.parametrize(
    "odd",
    [
        {"evaluated_tokens": None},
        {"loss": "4"},
        {"loss": 10**400},
        {"curve": [[1]]},
        {"routers": []},
        {"after": [1]},
        {"first_phase": [1]},
        {"exchanged": {"normal": 4.0}},
        {"similarity": {"ffn": [1]}},
    ],
)
def test_an_older_result_has_the_shape_of_one(tmp_path, odd):
    file = tmp_path / "results.jsonl"
    file.write_text(json.dumps(result("vanilla", 0, 4.25)) + "\n")
    assert len(read_results(tmp_path)) == 1
    file.write_text(json.dumps(result("vanilla", 0, 4.25) | odd) + "\n")
    with pytest.raises(ConfigError, match=f"line 1: is no result of a study .its {next(iter(odd))}"):
        read_results(tmp_path)


def test_what_a_study_keeps_is_there_or_refused(tmp_path):
    plan = make_plan(load_study("studies/two_arms"), "small", tmp_path)
    plan.folder.mkdir()
    write_study(plan)
    kept = (plan.folder / "study.json").read_bytes()
    for changed in (b"{}", b"[]", kept.replace(b"first_phase_seeded", b"first_phase_seedad"), kept[:50]):
        (plan.folder / "study.json").write_bytes(changed)
        with pytest.raises(ConfigError, match=r"study\.json"):
            check_study(plan)
    (plan.folder / "study.json").write_bytes(kept)
    check_study(plan)
    speed = {"tokens_per_s": 1.0, "speed_ratio": 1.0, "peak_bytes": 1}
    for arms in ([1], {"vanilla": 7}, {"vanilla": speed | {"tokens_per_s": 0}}, {"vanilla": {}}):
        (plan.folder / MEASURE).write_text(json.dumps({"arms": arms}))
        with pytest.raises(ConfigError, match="must have the speeds of arms; delete it"):
            read_measure(plan.folder)
    (plan.folder / MEASURE).write_text(json.dumps({"arms": {"vanilla": speed}}))
    assert read_measure(plan.folder) == {"vanilla": speed}
    # A disk that is not mounted.
    (plan.folder / "results.jsonl").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=r"results\.jsonl: cannot be read"):
        read_results(plan.folder)
