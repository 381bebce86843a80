"""The explorer's data say what the routes say; its page holds any text, loads nothing and stays small."""

import html
import json
import re

import numpy as np
import pytest
import routed_text

from mom_jax.analysis.explorer import Explorer, explorer_data, fragment, is_explorer_data, same_text
from mom_jax.config import ModelConfig, RouterConfig
from mom_jax.fields import ConfigError

PIECES = routed_text.PIECES * 2


@pytest.fixture(scope="module")
def routes():
    return routed_text.routes()


@pytest.fixture(scope="module")
def data(routes):
    return explorer_data(routes, PIECES, routed_text.CONFIG)


def test_data_are_the_routes(routes, data):
    data = json.loads(json.dumps(data, allow_nan=False))
    assert is_explorer_data(data)
    assert [data["vocabulary"][i] for i in data["piece"]] == PIECES
    assert data["windows"] == [0, 16]
    assert data["position"] == list(range(16)) * 2
    assert data["steps"] == 2
    assert data["loss"][15] is data["loss"][31] is None
    loss = [np.nan if value is None else value / 1000 for value in data["loss"]]
    np.testing.assert_allclose(loss, routes.loss_T, atol=5.1e-4)
    depth = 0
    for side, own in routes.sides.items():
        told = data["sides"][side]
        shape = 4, 32, told["choices"]
        np.testing.assert_array_equal(np.reshape(told["index"], shape), own.index)
        np.testing.assert_allclose(np.reshape(told["weight"], shape) / 1000, own.weight, atol=5.1e-4)
        depth = depth + (own.index < own.modules).sum((0, 2))
        assert told["modules"] == own.modules
    np.testing.assert_array_equal(data["depth"], depth)
    assert data["most_depth"] == 16


def test_classes_have_their_names(routes, data):
    assert data["sides"]["attention"]["classes"] == ["0", "1", "SKIP"]
    assert data["sides"]["ffn"]["classes"] == ["0", "1", "2", "SKIP"]
    assert explorer_data(routes, PIECES)["sides"]["ffn"]["classes"] == ["0", "1", "2", "SKIP"]
    # Attention has the FFN's classes: one that no module has, and SKIP; a choice that the prior forbade is one more.
    wide = ModelConfig(vocab_size=64, num_attn_modules=2, num_ffn_modules=3, router=RouterConfig(classes="max"))
    forbidden = routed_text.routes()
    forbidden.sides["attention"].index[0, 0, 1] = 4
    named = explorer_data(forbidden, PIECES, wide)
    assert named["sides"]["attention"]["classes"] == ["0", "1", "null", "SKIP", "null"]


def test_wrong_data_are_told_apart(routes, data):
    with pytest.raises(ConfigError, match="pieces=3: there must be one for each of the 32 tokens"):
        explorer_data(routes, PIECES[:3])
    assert same_text(data, explorer_data(routed_text.routes(seed=1), PIECES))
    assert not same_text(data, explorer_data(routes, PIECES[::-1]))
    short = {**data["sides"]["ffn"], "index": data["sides"]["ffn"]["index"][:-1]}
    for wrong in (
        [],
        {**data, "version": 2},
        {**data, "tokens": 31},
        {**data, "loss": None},
        {**data, "sides": {"ffn": short}},
        {**data, "sides": {"other": data["sides"]["ffn"]}},
    ):
        assert not is_explorer_data(wrong)


def test_the_page_holds_any_text_and_loads_nothing(data):
    page = Explorer({"a</script><script>": data}).page()
    # The text ends no script: there are the data and the program, and each ends once.
    assert page.count("<script") == page.count("</script>") == 2
    found = re.search(r'<script type="application/json" id="mom-explorer-data">(.*?)</script>', page)
    assert json.loads(found[1]) == [{"name": "a</script><script>", "data": data}]
    assert re.search(r"default-src 'none'", page)
    assert not re.search(r"\b(src|href|srcset)=|url\(|@import|import\(|fetch\(|XMLHttp", page)
    assert set(re.findall(r"https?://[^\"'\s]+", page)) == {"http://www.w3.org/2000/svg"}  # a name, not an address


def test_a_notebook_shows_the_page_in_a_frame(data):
    explorer = Explorer({"mom": data}, height=500)
    shown = re.fullmatch(
        r'<iframe title="Routing explorer" style="width:100%;height:500px;border:0" srcdoc="(.*)">'
        r"</iframe>",
        explorer._repr_html_(),
        re.DOTALL,
    )
    assert html.unescape(shown[1]) == explorer.page()


def test_many_tokens_of_a_deep_model_stay_small():
    deep = ModelConfig(
        vocab_size=50257,
        num_attn_modules=12,
        num_ffn_modules=12,
        num_steps=12,
        num_chunks=2,
        top_k=3,
        context_length=128,
    )
    pieces = [f"token{i}" for i in range(2000)]
    routes = routed_text.routes(windows=1, config=deep, pieces=pieces)
    assert len(fragment({"mom": explorer_data(routes, pieces, deep)}).encode()) < 2.5e6
