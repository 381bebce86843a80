"""The results that docs/studies keeps: of the studies as they are, and quoted as they are by docs/claims.md."""

import json
import re
import shutil

import numpy as np
import pytest
from programs import ROOT, call

from train.analysis.prune_curve import Point, PruneCurve, mean_table
from train.analysis.removal import Ranking
from train.study.__main__ import main
from train.study.definition import load_study
from train.study.plan import fingerprint
from train.study.records import read_results

KEPT = ROOT / "docs" / "studies"
FOLDERS = sorted(path.parent for path in KEPT.glob("*/results.jsonl"))


def study_of(folder):
    """(file, size) of the study whose results lie in the folder."""
    name, _, size = folder.name.rpartition("-")
    return ROOT / "configs" / "studies" / f"{name}.py", size


def rows_of(text):
    """(header, rows) of each table of a page, as lists of cells."""
    tables, lines = [], []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            lines.append([cell.strip() for cell in line.strip("|").split("|")])
        elif lines:
            tables.append((lines[0], lines[2:]))
            lines = []
    return tables


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_results_are_those_of_the_study_as_it_is(folder, tmp_path, capsys):
    file, size = study_of(folder)
    study, results = load_study(str(file)), read_results(folder)
    configs = study.configs(size)
    assert results
    for row in results:
        assert row["fingerprint"] == fingerprint(configs[row["arm"]]), (row["arm"], row["seed"])
        assert row["seed"] in study.seeds_of(size)
    shutil.copytree(folder, tmp_path / folder.name)
    code, output, _ = call(capsys, main, file, "--size", size, "--out", tmp_path, "--table")
    assert code == 0
    assert rows_of(output) == rows_of((folder / "table.md").read_text())
    assert len(rows_of(output)[0][1]) == len({row["arm"] for row in results})


def test_the_claims_quote_the_tables():
    """Behind a link to a study's table all tables of the page, until the next heading, that begin with the same name
    as one of that page, such as `arm`, have the cells that stand in it under the same names."""
    quoted = 0
    for section in re.split(r"^#+ ", (ROOT / "docs" / "claims.md").read_text(), flags=re.M):
        for link, text in zip(*[iter(re.split(r"\(studies/([\w-]+)/table\.md\)", section)[1:])] * 2, strict=True):
            tables = {names[0]: (names, known) for names, known in rows_of((KEPT / link / "table.md").read_text())}
            for header, rows in rows_of(text):
                if header[0] not in tables:
                    assert header[0] != "arm"
                    continue
                names, all_rows = tables[header[0]]
                known = {row[0]: dict(zip(names, row, strict=True)) for row in all_rows}
                for row in rows:
                    if len(set(names)) < len(names):  # names that stand there twice tell no column
                        assert (header, row) in [(names, whole) for whole in all_rows], (link, row[0])
                    else:
                        cells = dict(zip(header, row, strict=True))
                        assert cells == {name: known[row[0]][name] for name in header}, (link, row[0])
                    quoted += 1
    assert quoted


def curve_of(record):
    """A pruning curve as `train.analyse --prune-curve` has written it."""

    def point(own):
        return Point(own["cut"], {rank: np.inf if loss is None else loss for rank, loss in own["losses"].items()})

    rankings = {rank: Ranking(rank, {}, {}) for rank in record["rankings"]}
    curves = {name: [point(own) for own in points] for name, points in record["curves"].items()}
    facts = (record[name] for name in ("loss", "tokens", "modules", "chunks"))
    return PruneCurve(*facts, rankings, curves, point(record["paper"]))


def test_the_claims_quote_the_pruning_curves():
    """Tables that begin with `cut` have rows of the means of the curves that the link before them leads to."""
    kept = json.loads((KEPT / "pruning.json").read_text())
    page = (ROOT / "docs" / "claims.md").read_text()
    found = [rows_of(mean_table([curve_of(record) for record in own]))[0] for own in kept.values()]
    quoted = [(header, rows) for header, rows in rows_of(page) if header[0] == "cut"]
    assert len(quoted) == len(found)
    for (header, rows), (names, known) in zip(quoted, found, strict=True):
        assert header == names
        assert rows
        for row in rows:
            assert row in known


def test_raw_results_are_small():
    assert 0 < sum(path.stat().st_size for path in KEPT.rglob("*") if path.is_file()) < 2_000_000
    for folder in FOLDERS:
        for line in (folder / "results.jsonl").read_text().splitlines():
            json.loads(line)
