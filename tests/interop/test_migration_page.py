"""docs/migration.md says of the authors' options what mom_jax/interop/official.py does, and its configuration works."""

import dataclasses
import json
import re

from programs import ROOT

from mom_jax.config import ModelConfig
from mom_jax.interop.official import FIXED, IGNORED, OPTIONS, ROUTER_TYPES, config_from_official
from train.config import Config, Phase

PAGE = (ROOT / "docs" / "migration.md").read_text()


def rows(title):
    """The cells of the tables below a title, without their heads."""
    section = PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_every_option_is_there_with_its_field_and_default():
    found = {row[0].strip("`"): row for row in rows("The model's options") if len(row) == 4 and "`" in row[0]}
    assert list(found) == list(OPTIONS)
    for name, option in OPTIONS.items():
        _, default, fields, values = found[name]
        assert default == str(option.default) or default == repr(option.default)
        assert re.findall(r"`([\w.]+)`", fields) == list(option.fields)
        for theirs in option.values or ():
            assert name == "router_type" or str(theirs) in values
    text = " ".join(row[0] for row in rows("The model's options"))
    for name in (*FIXED, "depth_multiplier", "bind_ffn_attn", "n_layer", "output_router_logits"):
        assert f"`{name}`" in text
        assert name in FIXED or name in IGNORED


def test_router_types():
    kinds = {kind for kind, _ in ROUTER_TYPES.values()}
    assert {
        row[1].strip("`") for row in rows("The model's options") if len(row) == 3 and "classes" not in row[2]
    } == kinds
    for theirs, same in re.findall(r"`(\w+)` is `(\w+)`", PAGE):
        assert config_from_official({"router_type": theirs}) == config_from_official({"router_type": same})


def test_the_configuration(tmp_path, monkeypatch):
    """As a file of its own, beside a structure of theirs."""
    [block] = [block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "get_config" in block]
    (tmp_path / "structure").mkdir()
    structure = {"n_embd": 64, "n_head": 2, "chunks": 1, "num_attn": 4, "num_ffn": 4, "n_positions": 1024}
    (tmp_path / "structure" / "config.json").write_text(json.dumps(structure))
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    exec(block, namespace)
    config = namespace["get_config"]()
    assert isinstance(config, Config)
    assert (config.model.router.kind, config.model.num_steps, config.model.router.classes) == ("gru", 8, "max")
    assert config.model.dropout.active is False
    assert config.model_of("vanilla").num_layers == config.model.num_layers


def has(kind, path):
    """Whether a configuration of this kind has the field."""
    name, _, rest = path.partition(".")
    if name not in {field.name for field in dataclasses.fields(kind)}:
        return False
    default = getattr(kind, name, None)
    return not rest or (dataclasses.is_dataclass(default) and has(type(default), rest))


def test_fields_that_it_names_exist():
    tables = rows("Options of training") + rows("What differs where one says nothing")
    rooms = "model|data|optim|mesh|router|balance|checkpoint|wandb"
    named = {
        name for row in tables for name in re.findall(rf"`((?:phases\.N\.|(?:{rooms})\.)[a-z_.]*[a-z])[`=]", row[1])
    }
    named |= {name for row in tables for name in re.findall(rf"`((?:{rooms})\.[a-z_.]*[a-z])`", row[2])}
    assert len(named) > 20
    parts = {"optim": Phase, "router": ModelConfig, "balance": ModelConfig}
    for name in named:
        whole = Phase if name.startswith("phases.N.") else parts.get(name.partition(".")[0], Config)
        assert has(whole, name.removeprefix("phases.N.")), name
