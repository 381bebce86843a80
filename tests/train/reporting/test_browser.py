"""The report in a real browser: a token's path by mouse and by keyboard, the colourings, two models, both themes."""

import browser
import pytest
import routed_text
from test_report import make

from mom_jax.analysis.explorer import explorer_data
from train.reporting.page import write_report
from train.reporting.routes import write_routes

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(browser.find() is None, reason=f"no browser: none of {', '.join(browser.NAMES)}"),
]
PIECES = routed_text.PIECES * 2
ROUTES = {name: routed_text.routes(seed) for seed, name in enumerate(("run", "other"))}
TEXT = "document.querySelector('.mom-explorer').innerText"


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    for name, routes in ROUTES.items():
        (folder / name).mkdir()
        write_routes(folder / name, "mom", explorer_data(routes, PIECES, routed_text.CONFIG))
    return write_report(make(folder / "run"), folder / "other")


@pytest.fixture(scope="module")
def opened(report):
    with browser.page() as page:
        page.look(width=1400)
        page.open(report.as_uri())
        yield page


@pytest.fixture
def page(opened, report):
    """A page that nobody has touched."""
    opened.look(width=1400)
    opened.open(report.as_uri())
    yield opened
    assert set(opened.requests) == {report.as_uri()}
    assert opened.complaints == []


def path(name, token):
    """The rows of the path's table, from the routes."""
    rows, names = [], {"attention": ["0", "1", "SKIP"], "ffn": ["0", "1", "2", "SKIP"]}
    for step in range(4):
        row = [f"step {step}, chunk {step // 2}"]
        for side, own in ROUTES[name].sides.items():
            pairs = zip(own.index[step, token], own.weight[step, token], strict=True)
            row.append(", ".join(f"{names[side][i]} ({round(1000 * float(w)) / 1000:.3f})" for i, w in pairs))
        rows.append(row)
    return rows


def shown(page, number=0):
    """The rows of a path's table, as the page has them."""
    rows = f"[...[...document.querySelectorAll('.path')][{number}].querySelectorAll('tbody tr')]"
    return page.evaluate(f"{rows}.map((row) => [...row.cells].map((cell) => cell.innerText.replace('≠ ', '')))")


def choose(page, label, option):
    """As a reader of the keyboard: to the field, and down to the option."""
    field = f"[...document.querySelectorAll('label')].find((e) => e.innerText.startsWith('{label}')).control"
    page.evaluate(f"{field}.focus()")
    page.press("Home")
    for _ in range(20):
        if page.evaluate(f"{field}.selectedOptions[0].innerText") == option:
            return
        page.press("ArrowDown")
    raise AssertionError(f"{label} has no {option}")


def test_a_click_shows_the_path(page):
    assert "Choose a token" in page.evaluate(TEXT)
    page.click("[data-token='9']")
    assert shown(page) == path("run", 9)
    text = page.evaluate(TEXT)
    depth = sum((own.index[:, 9] < own.modules).sum() for own in ROUTES["run"].sides.values())
    assert f"“</script>”, window 0, position 9: effective depth {depth} of 16 modules; loss" in text
    assert page.evaluate("document.querySelectorAll('.path svg .taken').length") == 16
    # The text's own markup is text.
    assert page.evaluate("document.querySelector('.text b')") is None
    heard = page.heard()
    assert ("image", "Graph of the path: 8 rows, 4 columns. The table below says the same.") in heard
    status = page.evaluate("document.querySelector('[role=status]').textContent")
    assert status.startswith(f"Path of </script>, effective depth {depth} of 16. Step 0 Attention: ")


def test_the_keyboard_reaches_everything(page):
    reached = []
    for _ in range(40):
        page.press("Tab")
        reached.append(page.evaluate("(document.activeElement.getAttribute('role') ?? document.activeElement.tagName)"))
        if reached[-1] == "option":
            break
    # The model, the colouring and the numbers come before the text; the text is one stop.
    assert reached[-4:] == ["SELECT", "SELECT", "INPUT", "option"]
    place = "Number(document.activeElement.dataset.token)"
    for key, token in [
        ("ArrowRight", 1),
        ("ArrowRight", 2),
        ("ArrowLeft", 1),
        ("End", 15),
        ("PageDown", 16),
        ("Home", 16),
    ]:
        page.press(key)
        assert page.evaluate(place) == token, key
    page.press("ArrowUp")
    assert page.evaluate(place) < 16
    page.press("Home")
    page.press("ArrowRight")
    page.press("Enter")
    assert shown(page) == path("run", 1)
    assert page.evaluate("document.querySelector('[aria-selected=true]').dataset.token") == "1"
    assert (
        "option",
        "space f, effective depth " + page.evaluate("document.activeElement.lastChild.textContent") + " of 16",
    ) in page.heard()
    page.press("Tab")
    assert page.evaluate("document.activeElement.tagName") == "SELECT"
    page.press("Tab", shift=True)
    assert page.evaluate(place) == 1
    page.press("Tab")
    page.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Pin this token"


def test_colourings_say_what_they_show(page):
    routes = ROUTES["run"]
    numbers = "[...document.querySelectorAll('.token small')].map((e) => e.textContent)"
    colours = "[...document.querySelectorAll('.token')].map((e) => getComputedStyle(e).backgroundColor)"
    assert page.evaluate(numbers) == [str(depth) for depth in sum(own.real.sum(0) for own in routes.sides.values())]
    choose(page, "Colour by", "module of a step")
    choose(page, "Side", "FFN")
    choose(page, "Step", "step 3, chunk 1")
    top = routes.sides["ffn"].top[3]
    assert page.evaluate(numbers) == ["S" if module == 3 else str(module) for module in top]
    of_module = dict(zip(top.tolist(), page.evaluate(colours), strict=True))
    assert len(set(of_module.values())) == len(of_module) == 4
    legend = page.evaluate("document.querySelector('.legend').innerText")
    assert f"SKIP ({round(100 * (top == 3).mean())} %)" in legend
    choose(page, "Colour by", "loss of the next token")
    assert page.evaluate(numbers)[15] == "–"
    assert [float(n) for n in page.evaluate(numbers)[:15]] == pytest.approx(routes.loss_T[:15].tolist(), abs=0.051)


def test_two_tokens_and_two_models_side_by_side(page):
    page.click("[data-token='3']")
    page.click(".mom-explorer button")
    page.click("[data-token='20']")
    assert [shown(page, 0), shown(page, 1)] == [path("run", 3), path("run", 20)]
    best = [own.top[:, token] for token in (3, 20) for own in ROUTES["run"].sides.values()]
    same = sum(int((a == b).sum()) for a, b in zip(best[:2], best[2:], strict=True))
    assert f"The best choice is the same at {same} of 8 places" in page.evaluate(TEXT)
    choose(page, "Show", "this token in other, mom too")
    assert [shown(page, 0), shown(page, 1)] == [path("run", 20), path("other", 20)]
    choose(page, "Model", "other, mom")
    assert shown(page) == path("other", 20)


def contrast(one, other):
    """WCAG's, of two colours as the browser computes them."""

    def luminance(colour):
        channels = [value / 255 for value in colour]
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [400, 1400])
def test_it_can_be_read_in_both_themes_and_fits(page, width, dark):
    page.look(width=width, dark=dark)
    page.click("[data-token='3']")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for colouring in ("effective depth", "module of a step", "loss of the next token"):
        choose(page, "Colour by", colouring)
        found = page.evaluate(
            """[...document.querySelectorAll('.token')].map((token) => {
              const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
              const box = getComputedStyle(document.querySelector('.text')).backgroundColor;
              const [over, under] = [getComputedStyle(token).backgroundColor, box].map(numbers);
              const alpha = over[3] ?? 1;
              const mixed = [0, 1, 2].map((i) => over[i] * alpha + under[i] * (1 - alpha));
              return [numbers(getComputedStyle(token).color).slice(0, 3), mixed];
            })"""
        )
        assert min(contrast(ink, paper) for ink, paper in found) > 4.5
