"""What the report says of the inside: signs of failure, cost, specialisation, dependence, depth, the explorer."""

import dataclasses
import json

import numpy as np
import pytest
import routed_text
from programs import call
from test_report import CONFIG, MODEL, Page, make

from mom_jax.analysis.cost import forward_flops_per_token, parameter_count, training_memory_bytes
from mom_jax.analysis.explorer import explorer_data
from train.report import main
from train.reporting import pictures
from train.reporting.metrics import MetricsLog
from train.reporting.page import write_report
from train.reporting.routes import write_routes

PIECES = routed_text.PIECES * 2
REMEDY = "SKIP takes 93 % of the choices; set <balance.weight> higher."


@pytest.fixture
def figures(monkeypatch):
    """Collects the axes of the light theme's figures, by caption."""
    found = {}

    def embedded(width, height, draw, caption):
        figure = pictures.Figure(figsize=(width, height))
        draw(figure, "light")
        found[caption] = figure.axes
        return f"<figure>{caption}</figure>"

    monkeypatch.setattr(pictures, "embedded", embedded)
    return found


def analysis(phase, step, *, level=0.25, churn=None, routed=True):
    """A record of analysis as training writes it."""
    table = [[1.0, level], [level, 1.0]]
    similarity = {"weights": level, "outputs": 2 * level, "weights_NxN": table, "outputs_NxN": table}
    record = {"kind": "analysis", "phase": phase, "step": step}
    record["similarity"] = {
        "attention": similarity | {"attention_patterns": 0.6},
        "ffn": similarity,
    }
    if routed:
        explained = {"entropy": 2.0, "step": 0.5, "token": 1.0, "context": 0.5}
        record["dependence"] = {"ffn": explained | {"step_baseline": 0.1, "token_baseline": 0.4}}
        record["depth"] = {"mean": 2.5, "min": 2, "max": 3, "histogram": [0, 0, 0.5, 0.5, 0]}
        record["churn"] = {"ffn": churn}
    return record


def add(folder, *records):
    with MetricsLog(folder) as log:
        for record in records:
            log.write(record)


def amount(cell, unit=""):
    """The number in a cell such as `1.23 MB (1.05×)`."""
    number, prefix = cell.split(" ")[:2]
    return float(number) * {"k": 1e3, "M": 1e6, "G": 1e9}[prefix.removesuffix(unit)]


def test_signs_stand_at_the_top(tmp_path, figures):
    sign = {"kind": "sign", "phase": "mom", "step": 12, "sign": "skip_takes_over", "side": "ffn", "text": REMEDY}
    run = make(tmp_path / "run")
    add(run, sign, sign | {"side": None, "sign": "loss_variance", "text": "The loss jumps."})
    text = write_report(run).read_text()
    page = Page(text)
    assert page.texts["h2"][0] == "Signs of failure"
    assert "<b>skip takes over, FFN</b> <span>(phase mom, step 12)</span>" in text
    assert REMEDY.replace("<", "&lt;").replace(">", "&gt;") in text
    assert "<b>loss variance</b>" in text
    assert "Signs of failure" not in write_report(make(tmp_path / "healthy")).read_text()


def test_the_cost_stands_beside_vanillas(tmp_path, figures):
    run = make(tmp_path)
    taken = {side: {"taken": share} for side, share in (("attention", 1.5), ("ffn", 1.0))}
    add(run, {"kind": "final", "phase": "mom", "step": 20, "loss": 2.5, "routers": taken})
    cells = Page(write_report(run).read_text()).texts["td"]
    start = cells.index("vanilla")
    vanilla, most, measured = (cells[i : i + 5] for i in (start, start + 5, start + 10))
    models = MODEL.vanilla(), MODEL, MODEL
    length, batch = CONFIG.data.length, CONFIG.data.batch_size
    flops = [forward_flops_per_token(model, length) for model in models[:2]]
    flops.append(forward_flops_per_token(MODEL, length, attn_taken=1.5, ffn_taken=1.0))
    base = {"parameters": parameter_count(models[0]).total, "memory": training_memory_bytes(models[0], batch, length)}
    assert amount(vanilla[3], "FLOPs") == pytest.approx(flops[0], rel=5e-3)
    assert amount(vanilla[1]) == pytest.approx(base["parameters"], rel=5e-3)
    for row, name, model, work in zip(
        (most, measured), ("MoM, all that tokens may take", "MoM, taken after mom"), models[1:], flops[1:], strict=True
    ):
        count, memory = parameter_count(model), training_memory_bytes(model, batch, length)["total"]
        assert row[0] == name
        assert row[1].endswith(f" ({count.total / base['parameters']:.2f}×)")
        assert amount(row[3], "FLOPs") == pytest.approx(work, rel=5e-3)
        assert row[3].endswith(f" ({work / flops[0]:.2f}×)")
        assert amount(row[4], "B") == pytest.approx(memory, rel=5e-3)
        assert row[4].endswith(f"B ({memory / base['memory']['total']:.2f}×)")
    assert most[2].endswith(f" ({parameter_count(MODEL).active / parameter_count(models[0]).active:.2f}×)")
    assert measured[2] == "–"
    # A run of a plain transformer has nothing to be set beside it.
    (run / "config.json").write_text(json.dumps(dataclasses.asdict(dataclasses.replace(CONFIG, model=MODEL.vanilla()))))
    assert "Cost" not in Page(write_report(run).read_text()).texts["h2"]


def test_specialisation_over_training(tmp_path, figures):
    run = make(tmp_path)
    add(
        run,
        analysis("pretrain", 25, level=0.5, routed=False),
        analysis("mom", 1),
        analysis("mom", 20, level=0.125, churn=0.25),
    )
    page = Page(write_report(run).read_text())
    at = page.texts["h2"].index("Specialisation")
    assert page.texts["h2"][at : at + 3] == ["Specialisation", "What choices depend on", "Effective depth and churn"]

    [(_, (weights, outputs, patterns))] = [f for f in figures.items() if f[0].startswith("Mean similarity")]
    for axes, factor in ((weights, 1), (outputs, 2)):
        attention, ffn, *_ = axes.lines
        assert list(attention.get_xdata()) == list(ffn.get_xdata()) == [25, 51, 70]
        assert list(ffn.get_ydata()) == [0.5 * factor, 0.25 * factor, 0.125 * factor]
    assert list(patterns.lines[0].get_ydata()) == [0.6] * 3
    [(_, pairs)] = [f for f in figures.items() if f[0].startswith("Similarity of the outputs")]
    assert pairs[0].images[0].get_array().tolist() == [[1, 0.125], [0.125, 1]]

    cells = page.texts["td"]
    # What exceeds the baselines, of an entropy of 2 nats.
    explained = ["2.000", "20% (0.500, 0.100)", "30% (1.000, 0.400)", "50%"]
    assert cells[cells.index("FFN") + 1 :][:4] == explained
    [only] = figures["The same shares over training."]
    assert [line.get_label() for line in only.lines[:3]] == ["the step", "the token", "the context"]
    np.testing.assert_allclose(only.lines[0].get_ydata(), [20, 20])
    np.testing.assert_allclose(only.lines[2].get_ydata(), [50, 50])

    [(caption, (histogram, mean, churn))] = [f for f in figures.items() if "over all steps" in f[0]]
    assert "after 20 steps of mom: 2.50 on average, 2 to 3" in caption
    assert [(bar.get_x() + bar.get_width() / 2, bar.get_height()) for bar in histogram.patches] == [(2, 50), (3, 50)]
    assert list(mean.lines[0].get_ydata()) == [2.5, 2.5]
    assert (list(churn.lines[0].get_xdata()), list(churn.lines[0].get_ydata())) == ([70], [25])


def test_records_that_say_little(tmp_path, figures):
    run = make(tmp_path)
    bare = {"kind": "analysis", "phase": "mom", "step": 3}
    add(run, bare, bare | {"similarity": {"ffn": {"weights": None}}, "dependence": {}, "churn": {"ffn": None}})
    inside = {"Specialisation", "What choices depend on", "Effective depth and churn"}
    add(run, bare | {"dependence": {"ffn": {"entropy": 1.0, "step": None}}})
    assert inside.isdisjoint(Page(write_report(run).read_text()).texts["h2"])
    # A choice that is always the same depends on nothing.
    nothing = dict.fromkeys(("entropy", "step", "token", "context", "step_baseline", "token_baseline"), 0.0)
    add(run, bare | {"dependence": {"ffn": nothing}})
    cells = Page(write_report(run).read_text()).texts["td"]
    assert cells[cells.index("FFN") + 1 :][:4] == ["0.000", "– (0.000, 0.000)", "– (0.000, 0.000)", "–"]


def test_the_report_has_the_runs_routes(tmp_path, figures):
    run = make(tmp_path / "run")
    data = {name: explorer_data(routed_text.routes(i), PIECES) for i, name in enumerate(("mom", "pretrain"))}
    for name in data:
        write_routes(run, name, data[name])
    text = write_report(run).read_text()
    assert Page(text).texts["h2"].count("Routing explorer") == 1
    content = text.partition('id="mom-explorer-data">')[2].partition("</script>")[0]
    assert json.loads(content) == [{"name": name, "data": data[name]} for name in ("pretrain", "mom")]


def test_a_run_beside_another(tmp_path, figures, capsys):
    run, other = make(tmp_path / "run"), make(tmp_path / "other")
    data = [explorer_data(routed_text.routes(seed), PIECES) for seed in range(2)]

    def complaint(message):
        assert call(capsys, main, run, "--against", other) == (2, "", f"error: {message}\n")
        assert not (run / "report.html").exists()

    complaint(f"against={str(other)!r}: {run / 'routes'} has nothing to set it against")
    write_routes(run, "mom", data[0])
    complaint(f"against={str(other)!r}: {other / 'routes'} has no routes")
    write_routes(other, "mom", explorer_data(routed_text.routes(), PIECES[::-1]))
    complaint(f"against={str(other)!r}: its routes are of another text (other held-out data or tokens)")
    (other / "routes" / "mom.json").write_text('{"version": 1}')
    complaint(f"{other / 'routes' / 'mom.json'}: is not what training writes there; remove it to have a report without")

    write_routes(other, "mom", data[1])
    assert main([str(run), "--against", str(other)]) == 0
    content = (run / "report.html").read_text().partition('id="mom-explorer-data">')[2].partition("</script>")[0]
    names = "run, mom", "other, mom"
    assert json.loads(content) == [{"name": n, "data": d} for n, d in zip(names, data, strict=True)]
