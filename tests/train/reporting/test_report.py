"""The report of a run: what the page says, what its pictures show, and the program around it."""

import base64
import dataclasses
import html.parser
import json
import math
import re
import subprocess
import sys
import time

import matplotlib.image
import pytest
from programs import call

from mom_jax.config import ModelConfig
from mom_jax.fields import ConfigError
from train.config import Config, Phase
from train.report import main
from train.reporting import numbers, pictures
from train.reporting.history import Run
from train.reporting.metrics import MetricsLog
from train.reporting.page import summary, write_report

MODEL = ModelConfig(
    vocab_size=97, context_length=256, d_model=32, num_heads=4, num_attn_modules=2, num_ffn_modules=3, num_steps=2
)
CONFIG = Config(model=MODEL, phases=(Phase("pretrain", 50, model="vanilla"), Phase("mom", 20, init_from="previous")))
USAGE = {"attention": [[0.75, 0.25, 0.0], [0.5, 0.0, 0.5]], "ffn": [[0.1, 0.2, 0.3, 0.4], [1.0, 0.0, 0.0, 0.0]]}
SAMPLE = "if a < b && c:\n    <script>alert('$x$')</script>"


def routers(entropy):
    return {
        side: {"entropy": [entropy, entropy / 2], "usage": USAGE[side], "skip": 0.25, "off_diagonal": 0.5}
        for side in ("attention", "ffn")
    }


def make(folder, *, steps=(50, 20), config=CONFIG):
    """A run of two phases; the first has trained `steps[0]` steps, the second `steps[1]`."""
    with MetricsLog(folder) as log:
        for phase, count, top in (("pretrain", steps[0], 5.0), ("mom", steps[1], 3.0)):
            for step in range(1, count + 1):
                line = {"kind": "train", "phase": phase, "step": step, "loss": top - step / 100}
                line |= {"learning_rate": 1e-3, "grad_norm": 1.0, "tokens_per_s": 1000.0 + 9000 * (step == 1)}
                if phase == "pretrain":  # half of the first step's time and a tenth of the others'
                    line |= {"seconds": 10.0, "data_wait": 0.5} if step == 1 else {"seconds": 1.0, "data_wait": 0.1}
                log.write(line | ({"routers": routers(1 - step / 100)} if phase == "mom" else {}))
            log.write({"kind": "validation", "phase": phase, "step": count, "loss": top, "bits_per_byte": 1.5})
        final = {"kind": "final", "phase": "mom", "step": steps[1], "loss": 2.5, "perplexity": 12.25, "sample": SAMPLE}
        log.write(final | {"exchanged": {"normal": [2.5, 2.5, 2.6], "exchanged": [2.75, 2.75, 2.85]}})
    if config is not None:
        (folder / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
    return folder


def collected(monkeypatch):
    """The figures, which are not drawn from here on: each twice, for the light and the dark theme."""
    found = []

    class Canvas:
        def __init__(self, figure):
            found.append(figure)

        def print_png(self, buffer):
            buffer.write(b"png")

    monkeypatch.setattr(pictures, "FigureCanvasAgg", Canvas)
    return found


@pytest.fixture
def figures(monkeypatch):
    return collected(monkeypatch)


class Page(html.parser.HTMLParser):
    """Tags, the addresses that they point to, and the text of each `pre` and table cell."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.texts, self.open = [], [], {"pre": [], "td": [], "h2": []}, []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "srcset", "href")]
        if tag in self.texts:
            self.texts[tag].append("")
        if tag not in ("meta", "br", "img", "source"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in self.texts:
            self.texts[self.open[-1]][-1] += data


def labels(axes):
    return [text.get_text() for text in axes.get_xticklabels()]


def test_a_page_with_everything(tmp_path):
    path = write_report(make(tmp_path / "a<b"))
    assert path == tmp_path / "a<b" / "report.html"
    assert not list(path.parent.glob("*.tmp"))
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert "script" not in page.tags
    assert "<title>a&lt;b</title>" in text
    assert page.texts["pre"][0] == SAMPLE
    assert json.loads(page.texts["pre"][1]) == json.loads((path.parent / "config.json").read_text())
    assert page.texts["h2"] == [
        "Cost", "Training", "Routing in phase mom", "Exchange test after phase mom", "Sample after phase mom",
        "Configuration",
    ]  # fmt: skip
    assert "changes the mean loss by +0.2500 nats/token" in text
    # Nothing is loaded from elsewhere, and every picture is there for both themes and has something in it.
    assert len(page.addresses) == 2 * 5
    for address in page.addresses:
        assert address.startswith("data:image/png;base64,")
        picture = tmp_path / "picture.png"
        picture.write_bytes(base64.b64decode(address.partition(",")[2]))
        pixels = matplotlib.image.imread(picture)
        assert pixels.shape[0] > 200
        assert pixels.shape[1] == 1300
        assert 0 < (pixels[..., 3] > 0.5).mean() < 0.95


def test_summary_of_the_phases(tmp_path):
    pretrain, mom = summary(make(tmp_path))

    assert pretrain == {
        "phase": "pretrain",
        "steps": 50,
        # Embeddings, five layers (2 anchors and M = 3) of 12·D² + 13·D, the final norm.
        "parameters": 32 * (97 + 256) + 5 * (12 * 32**2 + 13 * 32) + 64,
        "train_loss": pytest.approx(4.5),
        "validation_loss": 5.0,
        "perplexity": pytest.approx(148.41316),
        "bits_per_byte": 1.5,
        "tokens_per_s": 1000.0,
        "data_wait": pytest.approx((0.5 * 10 + 0.1 * 49) / 59),
        **dict.fromkeys(("without_loss", "skipped", "rewinds", "spikes"), 0),
    }
    assert mom["data_wait"] is None
    assert (mom["validation_loss"], mom["perplexity"], mom["bits_per_byte"]) == (2.5, 12.25, 1.5)


def test_train_loss_is_the_mean_of_the_last_steps(tmp_path):
    with MetricsLog(tmp_path) as log:
        for step in range(1, 401):
            log.write({"kind": "train", "phase": "p", "step": step, "loss": float(step)})
    # A fiftieth of 400 steps is 8, of which the last step has the 4 before it.
    assert summary(tmp_path)[0]["train_loss"] == 398.0


def test_numbers_that_are_none_are_shown(tmp_path):
    with MetricsLog(tmp_path) as log:
        for step, loss in enumerate((3.0, 2.0, math.nan, math.nan), start=1):
            log.write({"kind": "train", "phase": "p", "step": step, "loss": loss})
        watched = {"kind": "watch", "phase": "p", "step": 3, "fault": "not finite", "policy": "skip", "reason": "<nan>"}
        log.write(watched | {"loss": math.nan, "grad_norm": 1.0, "skipped": 1, "rewinds": 0, "in_a_row": 1})
    [row] = summary(tmp_path)
    assert (row["train_loss"], row["without_loss"], row["skipped"], row["rewinds"], row["spikes"]) == (None, 2, 1, 0, 0)
    _, _, *items, _ = numbers.section(Run(tmp_path))
    assert items == [
        "<li><b>p</b>: 2 of 4 steps have no loss</li>",
        "<li>phase p, step 3: &lt;nan&gt;; the update was skipped</li>",
    ]


def test_losses_of_all_phases_on_one_axis(tmp_path, figures):
    write_report(make(tmp_path, steps=(40, 20)))
    axes = figures[0].axes[0]
    noisy, smooth, held, noisy_mom, *_ = axes.lines
    assert list(noisy.get_xdata()) == list(smooth.get_xdata()) == list(range(1, 41))
    assert (list(held.get_xdata()), list(held.get_ydata())) == ([40], [5.0])
    # Phase 2 starts where phase 1 was to end, whether or not it has come so far.
    assert noisy_mom.get_xdata()[0] == 51
    assert noisy_mom.get_ydata()[0] == pytest.approx(2.99)
    assert [text.get_text() for text in axes.texts] == ["pretrain", "mom"]


def test_every_axis_says_what_it_shows(tmp_path, figures):
    write_report(make(tmp_path))
    assert len(figures) == 10
    for axes in (axes for figure in figures for axes in figure.axes):
        assert axes.get_ylabel() or [text.get_text() for text in axes.get_yticklabels()] == ["normal", "exchanged"]
        assert axes.get_xlabel() or axes.get_label() == "<colorbar>"


def test_usage_of_the_modules(tmp_path, figures):
    write_report(make(tmp_path))
    attention, ffn, _ = figures[4].axes
    assert attention.images[0].get_array().tolist() == [[75, 25, 0], [50, 0, 50]]
    assert labels(attention) == ["0", "1", "SKIP"]
    assert labels(ffn) == ["0", "1", "2", "SKIP"]
    assert [text.get_text() for text in attention.texts] == ["75", "25", "0", "50", "0", "50"]


def test_null_classes_are_named(tmp_path, figures):
    model = dataclasses.replace(MODEL, skip=False, router=dataclasses.replace(MODEL.router, classes="max"))
    write_report(make(tmp_path, config=dataclasses.replace(CONFIG, model=model)))
    assert labels(figures[4].axes[0]) == ["0", "1", "null"]
    # ... and what no token can choose has no panel: two sides, and the steps' colours.
    assert [axes.get_title() for axes in figures[6].axes] == ["Attention", "FFN", ""]
    assert "SKIP" not in (tmp_path / "report.html").read_text().split("Entropy of the routers")[1].split("<h2>")[0]


def test_entropy_and_skip_over_training(tmp_path, figures):
    write_report(make(tmp_path))
    attention, ffn, skip, _ = figures[6].axes
    assert len(attention.lines) == len(ffn.lines) == 2
    assert list(attention.lines[1].get_xdata()) == list(range(51, 71))
    assert attention.lines[1].get_ydata()[0] == pytest.approx(0.495)
    assert list(skip.lines[0].get_ydata()) == [25.0] * 20


def test_a_run_with_little_to_show(tmp_path, figures):
    with MetricsLog(tmp_path) as log:
        log.write({"kind": "train", "phase": "p", "step": 1, "loss": float("nan"), "routers": {"ffn": {}}})
        log.write({"kind": "train", "phase": "p", "step": 2, "routers": {"ffn": {"entropy": [0.5], "skip": None}}})
        log.write({"kind": "train", "phase": "p", "step": 3, "routers": {"ffn": {"entropy": [None]}}})
        log.write({"kind": "final", "phase": "p", "step": 3, "loss": None, "exchanged": {"normal": [1.0]}})
    text = write_report(tmp_path).read_text()
    assert Page(text).texts["td"] == ["p", "3", "3"]
    assert "Exchange test" not in text
    assert "Configuration" not in text
    assert len(figures) == 6
    assert figures[4].axes[0].lines[0].get_ydata()[0] == 0.5


def test_a_config_of_another_version_is_shown_as_it_is(tmp_path, figures):
    (make(tmp_path, config=None) / "config.json").write_text('{"model": {"novel": "<1>"}}')
    page = Page(write_report(tmp_path).read_text())
    assert json.loads(page.texts["pre"][-1]) == {"model": {"novel": "<1>"}}
    assert [row["parameters"] for row in summary(tmp_path)] == [None, None]
    assert labels(figures[4].axes[0]) == ["0", "1", "2"]


def test_an_old_report_stays_where_a_new_one_fails(tmp_path, figures, monkeypatch):
    path = write_report(make(tmp_path))
    old = path.read_text()
    monkeypatch.setattr(pictures, "losses", lambda *_: time.sleep("no"))
    with pytest.raises(ConfigError, match="records that training does not write"):
        write_report(tmp_path)
    assert path.read_text() == old


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, r"metrics\.jsonl: no such file"),
        ("", r"metrics\.jsonl: has no records"),
        ("{}\n{broken\n{}\n", r"metrics\.jsonl, line 2: must be a JSON object"),
    ],
)
def test_runs_without_metrics_are_named_on_one_line(tmp_path, capsys, content, complaint):
    if content is not None:
        (tmp_path / "metrics.jsonl").write_text(content)
    code, out, err = call(capsys, main, tmp_path)
    assert (code, out) == (2, "")
    assert re.fullmatch(rf"error: .*{complaint}\n", err)
    assert not (tmp_path / "report.html").exists()


def test_a_broken_config_is_named(tmp_path, capsys):
    (make(tmp_path) / "config.json").write_text("{")
    code, _, err = call(capsys, main, tmp_path)
    assert code == 2
    assert "config.json: cannot be read (Expecting" in err


def test_the_table_as_json(tmp_path, capsys):
    assert main([str(make(tmp_path)), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == summary(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_the_program_as_a_user_runs_it(tmp_path):
    command = [sys.executable, "-W", "error", "-m", "train.report"]
    with MetricsLog(tmp_path / "run") as log:
        log.write({"kind": "train", "phase": "p", "step": 1, "loss": 2.0})
    good = subprocess.run([*command, str(tmp_path / "run")], capture_output=True, text=True, check=False)
    assert (good.returncode, good.stdout, good.stderr) == (0, f"{tmp_path / 'run' / 'report.html'}\n", "")
    bad = subprocess.run([*command, str(tmp_path / "none")], capture_output=True, text=True, check=False)
    path = tmp_path / "none" / "metrics.jsonl"
    assert (bad.returncode, bad.stdout, bad.stderr) == (2, "", f"error: {path}: no such file\n")
