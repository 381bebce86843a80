"""Several runs on one page: what it says of their figures, configurations and routing, and what its curves show."""

import dataclasses
import json
import math

import browser
import pytest
from programs import call
from test_report import CONFIG, Page, collected, make

from mom_jax.fields import to_dict
from train.config import OptimConfig, Phase
from train.report import main
from train.reporting.comparison import figures as compared
from train.reporting.comparison import page as page_of
from train.reporting.comparison.page import compare, write_comparison
from train.reporting.metrics import MetricsLog

OTHER = dataclasses.replace(
    CONFIG,
    seed=3,
    phases=(Phase("mom", 20, optim=OptimConfig(learning_rate=3e-4)),),
    data=dataclasses.replace(CONFIG.data, batch_size=16),
)


@pytest.fixture
def runs(tmp_path):
    """Two runs of two phases, of which one lies further on, and one of a single phase without a file of its own."""
    one = make(tmp_path / "one")
    two = make(tmp_path / "two", config=dataclasses.replace(CONFIG, seed=1, run="elsewhere"))
    three = tmp_path / "$x$ <b>"
    with MetricsLog(three) as log:
        for step in range(1, 6):
            log.write({"kind": "train", "phase": "mom", "step": step, "loss": 4.0 - step / 10, "grad_norm": 0.0})
        log.write({"kind": "validation", "phase": "mom", "step": 5, "loss": 3.25})
        log.write({"kind": "sign", "phase": "mom", "step": 5, "sign": "x", "side": None, "text": "y"})
    (three / "config.json").write_text(json.dumps(dataclasses.asdict(OTHER)))
    return [one, two, three]


@pytest.fixture
def drawn(monkeypatch):
    """The browser's test draws the figures."""
    return collected(monkeypatch)


@pytest.fixture
def bare(monkeypatch):
    """Pages without pictures."""
    monkeypatch.setattr(page_of, "embedded", lambda width, height, draw, caption: "")


def test_the_page(runs, drawn):
    path = write_comparison(runs)
    assert path == runs[0] / "comparison.html"
    text = path.read_text()
    page = Page(text)
    assert page.open == []
    assert page.texts["h2"] == ["Final figures", "What the configurations differ in", "Training", "Routing"]
    assert "<title>one and 2 more</title>" in text
    # Curves of training, of two sides' entropy and SKIP, and a heat map a run with routers; for both themes.
    assert len(page.addresses) == 2 * (4 + 4 + 2)
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert "$x$ &lt;b&gt;" in text
    assert "No routers." in text


def test_figures(runs):
    known = compare(runs)
    rows = {(row["run"], row["phase"]): row for row in known["figures"]}
    assert list(rows) == [("one", "pretrain"), ("one", "mom"), ("two", "pretrain"), ("two", "mom"), ("$x$ <b>", "mom")]
    assert rows["one", "mom"]["difference"] is None
    assert rows["two", "mom"]["difference"] == 0.0
    assert rows["$x$ <b>", "mom"]["difference"] == pytest.approx(0.75)
    assert (rows["$x$ <b>", "mom"]["signs"], rows["one", "mom"]["signs"]) == (1, 0)
    assert rows["one", "mom"]["parameters"] > rows["one", "pretrain"]["parameters"] > rows["one", "pretrain"]["active"]
    assert rows["one", "mom"]["flops"] > 0
    one, other = (row for row in known["routing"] if row["run"] == "two")
    assert (one["side"], one["phase"], one["skip"], one["step"]) == ("attention", "mom", 0.25, 20)
    assert one["entropy"] == pytest.approx((0.8 + 0.4) / 2)
    assert one["largest"] == pytest.approx((0.75 + 0.5) / 2)
    assert other["largest"] == pytest.approx((0.4 + 1.0) / 2)
    assert one["exchange"] == pytest.approx(0.25)


@pytest.mark.usefixtures("bare")
def test_differences(runs, tmp_path):
    found = compare(runs)["differences"]
    assert found == {
        "data.batch_size": [8, 8, 16],
        "phases.0.name": ["pretrain", "pretrain", "mom"],
        "phases.0.steps": [50, 50, 20],
        "phases.0.model": ["vanilla", "vanilla", "model"],
        "phases.0.optim.learning_rate": [0.001, 0.001, 0.0003],
        "phases.1.name": ["mom", "mom", None],
        "phases.1.steps": [20, 20, None],
        "phases.1.model": ["model", "model", None],
        "phases.1.init_from": ["previous", "previous", None],
        "seed": [0, 1, 3],
    }
    assert "Not the same text" not in write_comparison(runs).read_text()
    # Of other data losses do not compare; another version's file is taken as it is.
    data = dataclasses.replace(CONFIG.data, validation_fraction=0.2)
    four = make(tmp_path / "four", config=dataclasses.replace(CONFIG, data=data))
    assert "differ in data.validation_fraction: losses of other" in write_comparison([runs[0], four]).read_text()
    # JSON has no infinity: it is said as the file says it.
    signs = dataclasses.replace(CONFIG.signs, exchange_effect=math.inf)
    (four / "config.json").write_text(json.dumps(to_dict(dataclasses.replace(CONFIG, signs=signs))))
    found = compare([runs[0], four])["differences"]
    assert found == {"signs.exchange_effect": [CONFIG.signs.exchange_effect, "inf"]}
    (four / "config.json").write_text('{"data": {"novel": [1]}}')
    found = compare([runs[0], four])["differences"]
    assert found["data.novel"] == [None, [1]]
    (four / "config.json").unlink()
    assert "No config.json: four." in write_comparison([runs[0], four]).read_text()


def test_curves_on_common_axes(runs, drawn):
    write_comparison(runs)
    loss, _, held, *_ = drawn
    [axes] = loss.axes
    # Each phase is a line; steps have different numbers of tokens: 8 · 256, and 16 · 256.
    assert axes.get_xlabel() == "training tokens, millions, all phases"
    assert len(axes.lines) == 5
    assert axes.lines[0].get_xdata()[-1] == pytest.approx(50 * 8 * 256 / 1e6)
    assert axes.lines[1].get_xdata()[0] == pytest.approx(51 * 8 * 256 / 1e6)
    assert list(axes.lines[4].get_xdata()) == pytest.approx([step * 16 * 256 / 1e6 for step in range(1, 6)])
    assert len({axes.lines[i].get_color() for i in (0, 2, 4)}) == 3
    assert axes.lines[0].get_color() == axes.lines[1].get_color()
    assert [text.get_text() for text in loss.legends[0].get_texts()] == ["one", "two", "$x$ <b>"]
    assert [list(line.get_ydata()) for line in held.axes[0].lines] == [[5.0], [3.0], [5.0], [3.0], [3.25]]
    drawn.clear()
    write_comparison(runs[:2])
    assert drawn[0].axes[0].get_xlabel() == "training step, all phases"
    for axes in (axes for figure in drawn for axes in figure.axes):
        assert axes.get_ylabel()


@pytest.mark.usefixtures("bare")
def test_the_program(runs, tmp_path, capsys):
    code, out, err = call(capsys, main, *runs, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == json.loads(json.dumps(compare(runs)))
    assert not (runs[0] / "comparison.html").exists()
    code, out, _ = call(capsys, main, *runs, "--output", tmp_path / "page.html")
    assert (code, out) == (0, f"{tmp_path}/page.html\n")
    assert call(capsys, main, *runs, "--output", tmp_path / "page.html")[0] == 0  # replaced
    log = (runs[0] / "metrics.jsonl").read_bytes()
    for arguments, expected in (
        ((runs[0], runs[0]), f"run='{runs[0]}': is there twice"),
        ((*runs[:2], "--against", runs[2]), "is for the report of one run"),
        ((runs[0], "--output", "x.html"), "is for several runs"),
        ((runs[0], tmp_path / "none"), f"{tmp_path}/none/metrics.jsonl: no such file"),
        ((*runs, "--output", tmp_path / "no" / "page.html"), "cannot be written"),
        ((*runs, "--output", ""), "is there already, and is not a page of this program"),
        ((*runs, "--output", runs[0] / "metrics.jsonl"), "is there already, and is not a page of this program"),
        ((*runs, "--output", runs[0]), "is there already, and is not a page of this program"),
    ):
        code, _, err = call(capsys, main, *arguments)
        assert code == 2
        assert expected in err
        assert err.count("\n") == 1
    assert (runs[0] / "metrics.jsonl").read_bytes() == log
    # Two folders of one name.
    (tmp_path / "a").mkdir()
    again = make(tmp_path / "a" / "one")
    assert [each.name for each in compared.opened([runs[0], again])] == [str(runs[0]), str(again)]


@pytest.mark.slow
@pytest.mark.skipif(browser.find() is None, reason=f"no browser: none of {', '.join(browser.NAMES)}")
def test_in_a_browser(runs):
    path = write_comparison(runs)
    with browser.page() as page:
        for width in (400, 1400):
            for dark in (False, True):
                page.look(width=width, dark=dark)
                page.open(path.as_uri())
                wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
                assert page.evaluate(wide) == 0
                columns = "getComputedStyle(document.querySelector('.curves')).gridTemplateColumns.split(' ').length"
                assert page.evaluate(columns) == (1 if width == 400 else 2)
                shown = "[...document.images].every((image) => image.complete && image.naturalWidth > 0)"
                assert page.evaluate(shown)
        assert set(page.requests) == {path.as_uri()}
        assert page.complaints == []
