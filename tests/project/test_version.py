"""The version has one place, and the files that people read of the project agree with it and can be read."""

import re

import yaml
from programs import ROOT

import mom_jax


def test_the_citation_is_of_this_version_and_of_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == mom_jax.__version__
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(citation)
    [paper] = citation["references"]
    assert paper["identifiers"][0]["value"].endswith("2407.06677")
    assert len(paper["authors"]) == 9


def test_the_changes_begin_with_this_version():
    text = (ROOT / "CHANGELOG.md").read_text()
    assert re.findall(r"^## (\S+)", text, re.MULTILINE)[0] == mom_jax.__version__


def test_the_version_stands_nowhere_else():
    assert mom_jax.__version__ not in (ROOT / "pyproject.toml").read_text()
    assert 'attr = "mom_jax.__version__"' in (ROOT / "pyproject.toml").read_text()


def test_issue_templates_ask_for_what_helps():
    folder = ROOT / ".github" / "ISSUE_TEMPLATE"
    asked = {name: yaml.safe_load((folder / f"{name}.yml").read_text()) for name in ("bug", "question")}
    for template in asked.values():
        assert {"name", "description", "body"} <= set(template)
        assert all(row["attributes"]["label"] for row in template["body"])
    required = {row["id"] for row in asked["bug"]["body"] if row.get("validations", {}).get("required")}
    assert required == {"what", "how", "version"}
