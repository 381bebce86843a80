"""The lm-evaluation-harness on our models: tasks of each kind end to end, log-likelihoods against plain sums, and the
harness's own Hugging Face model on the same weights."""

import json
import logging
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import ROOT, call, environment
from small_tasks import CONTEXT, NAMES, write_gpt2, write_tasks

from mom_jax.fields import ConfigError
from mom_jax.model import with_parameters
from train import checkpoint, evaluate
from train.tasks.perplexity import scores

pytest.importorskip("lm_eval")
from lm_eval.api.instance import Instance
from lm_eval.utils import get_rolling_token_windows

from train.tasks.lm_eval import harness, results
from train.tasks.lm_eval.settings import Settings

PAIRS = [
    ("alpha beta", " gamma"),
    ("alpha beta  ", "gamma delta"),  # the spaces belong to the continuation
    ("", " epsilon zeta"),  # given the separator only
    ("  ", "eta"),
    ("alp", "ha"),  # one token together
    ("mu lambda " * 40, " kappa iota"),  # too long: cut on the left
    ("\u00e9", "\u4e16 theta"),
]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    return write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    return write_gpt2(tmp_path_factory.mktemp("models") / "gpt2")


@pytest.fixture(scope="module")
def ours(gpt2):
    model = checkpoint.open_model(gpt2, field="checkpoint")
    return harness.Harness(model.config, model.params, model.tokenizer, batch_size=4)


@pytest.fixture(scope="module")
def theirs(gpt2):
    """The harness's own model of the same folder."""
    pytest.importorskip("torch")
    pytest.importorskip("accelerate")
    transformers = pytest.importorskip("transformers")
    from lm_eval.models.huggingface import HFLM

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    model = transformers.GPT2LMHeadModel.from_pretrained(gpt2).eval()
    return HFLM(pretrained=model, tokenizer=transformers.AutoTokenizer.from_pretrained(gpt2), batch_size=4)


@pytest.fixture(scope="module")
def log_probabilities(gpt2):
    """Log-probabilities [n, V] of what follows each of n tokens, unbatched."""
    model = checkpoint.open_model(gpt2, field="checkpoint")
    params = jax.tree.map(jnp.asarray, model.params)
    forward = jax.jit(lambda ids: with_parameters(model.config, params)(ids).logits[0])

    def of(ids):
        logits = np.asarray(forward(jnp.asarray([ids + [0] * (CONTEXT - len(ids))], jnp.int32)), np.float64)[: len(ids)]
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

    return of


def requests(kind, *arguments):
    return [Instance(kind, {}, arguments=a, idx=i, metadata=("test", i, 1)) for i, a in enumerate(arguments)]


def test_log_likelihoods_are_plain_sums(ours, log_probabilities):
    tokens = ours.tok_encode
    answers = ours.loglikelihood(requests("loglikelihood", *PAIRS), disable_tqdm=True)
    for (context, continuation), (got, greedy) in zip(PAIRS, answers, strict=True):
        # A context of spaces only, or one that shares a token with what follows, is tokenized by itself.
        spaces = len(context) - len(context.rstrip())
        before, after = context[: len(context) - spaces], context[len(context) - spaces :] + continuation
        before_ids = tokens(before) or [ours.eot_token_id]
        after_ids = tokens(before + after)[len(tokens(before)) :] or tokens(after)
        ids = (before_ids + after_ids)[-(CONTEXT + 1) :]
        table = log_probabilities(ids[:-1])[-len(after_ids) :]
        want = sum(row[i] for row, i in zip(table, after_ids, strict=True))
        assert got == pytest.approx(want, abs=1e-4)
        assert greedy == (table.argmax(-1).tolist() == after_ids)


def test_what_the_model_finds_most_probable_is_greedy(ours, log_probabilities):
    ids = ours.tok_encode("alpha beta")
    best = [int(log_probabilities(ids)[-1].argmax())]
    best.append(int(log_probabilities(ids + best)[-1].argmax()))
    other = [best[0], (best[1] + 1) % ours.config.vocab_size]
    answers = ours._loglikelihood_tokens([(None, ids, best), (None, ids, other)], disable_tqdm=True)
    assert [greedy for _, greedy in answers] == [True, False]


def test_rolling_log_likelihoods_are_plain_sums(ours, log_probabilities):
    texts = ["", "alpha beta", "gamma delta epsilon " * 40]
    got = ours.loglikelihood_rolling(requests("loglikelihood_rolling", *((t,) for t in texts)), disable_tqdm=True)
    for text, total in zip(texts, got, strict=True):
        want, ids = 0.0, ours.tok_encode(text)
        for inputs, labels in get_rolling_token_windows(ids, ours.eot_token_id, CONTEXT, 1):
            table = log_probabilities(inputs)[-len(labels) :]
            want += sum(row[i] for row, i in zip(table, labels, strict=True))
        assert total == pytest.approx(want, abs=1e-4 * max(1, len(ids)))
    assert got[0] == 0


def test_lengths_are_compiled_once(ours):
    ours.loglikelihood(requests("loglikelihood", *PAIRS), disable_tqdm=True)
    before = scores._scores._cache_size()
    more = [("alpha " * n, "beta") for n in range(1, 60, 7)]
    ours.loglikelihood(requests("loglikelihood", *more), disable_tqdm=True)
    assert scores._scores._cache_size() == before


@pytest.mark.slow
def test_the_harness_finds_the_same_with_its_own_model(ours, theirs, tasks):
    """All metrics of tasks of each kind; contexts are too long for some."""
    found = results.find_tasks(NAMES, str(tasks))
    mine, other = (results.evaluate(model, results.Request(), found)["results"] for model in (ours, theirs))
    assert mine.keys() == other.keys() == set(NAMES)
    for task, metrics in mine.items():
        for name, value in metrics.items():
            want = other[task][name]
            assert value == (want if isinstance(value, str) else pytest.approx(want, rel=1e-4)), (task, name)


def test_answers_are_those_of_the_harness_own_model(ours, theirs):
    pairs = [pair for pair in PAIRS if pair[0].strip() and pair != ("alp", "ha")]
    asked = requests("loglikelihood", *pairs)
    mine, other = (model.loglikelihood(asked, disable_tqdm=True) for model in (ours, theirs))
    assert [greedy for _, greedy in mine] == [greedy for _, greedy in other]
    np.testing.assert_allclose([a for a, _ in mine], [a for a, _ in other], atol=1e-4, rtol=1e-5)
    asked = requests("generate_until", *((text, {"until": [" alpha"], "max_gen_toks": 12}) for text, _ in pairs))
    mine, other = (model.generate_until(asked, disable_tqdm=True) for model in (ours, theirs))
    assert mine == other
    assert any(mine)


def test_generation_stops_at_the_first_stop_string(ours):
    [whole] = ours.generate_until(requests("generate_until", ("alpha beta", {"max_gen_toks": 12})), disable_tqdm=True)
    stop = whole[len(whole) // 2 :][:2]
    settings = {"until": [stop, "never"], "max_gen_toks": 12}
    [cut] = ours.generate_until(requests("generate_until", ("alpha beta", settings)), disable_tqdm=True)
    assert cut == whole[: whole.index(stop)]


def test_generation_ends_with_its_stop_string(ours, monkeypatch):
    """And computes no further."""
    decoder, steps = ours._decoder, []
    step = decoder._step
    monkeypatch.setattr(decoder, "_step", lambda *given: steps.append(1) or step(*given))
    [whole] = ours.generate_until(requests("generate_until", ("alpha beta", {"max_gen_toks": 12})), disable_tqdm=True)
    assert len(steps) == 11
    for stop in (whole[:1], whole[: len(whole) // 2]):  # of one token, about, and of several
        steps.clear()
        asked = requests("generate_until", ("alpha beta", {"until": [stop], "max_gen_toks": 12}))
        assert ours.generate_until(asked, disable_tqdm=True) == [""]
        assert len(steps) < 10


def test_beams_are_those_of_the_harness_own_model(ours, theirs):
    settings = {"until": [], "max_gen_toks": 10, "num_beams": 3, "do_sample": False}
    asked = requests("generate_until", ("alpha beta", settings), ("mu", settings))
    mine, other = (model.generate_until(asked, disable_tqdm=True) for model in (ours, theirs))
    assert mine == other
    with pytest.raises(ConfigError, match="generation_kwargs: num_beams=-1"):
        ours.generate_until(requests("generate_until", ("mu", settings | {"num_beams": -1})), disable_tqdm=True)


def test_sampling_draws(ours):
    settings = {"max_gen_toks": 12, "do_sample": True, "temperature": 5.0}
    many = requests("generate_until", *[("alpha beta", settings)] * 6)
    texts = ours.generate_until(many, disable_tqdm=True)
    assert len(set(texts)) == 6
    assert ours.generate_until(many, disable_tqdm=True) == texts


def test_settings():
    read = Settings.read
    assert read({}, 1024) == Settings((), 256, {"temperature": 0.0})
    assert read({}, 100).new_tokens == 50
    assert read({"until": "x", "max_tokens": 3}, 9) == Settings(("x",), 3, {"temperature": 0.0})
    assert read({"temperature": 0.7, "top_k": 5}, 9).sampling == {"temperature": 0.7, "top_k": 5}
    assert read({"do_sample": True, "temperature": 1, "top_k": -1}, 9).sampling == {"temperature": 1}
    assert read({"do_sample": False, "top_p": 0.9, "num_beams": 3}, 9).sampling == {"temperature": 0, "num_beams": 3}
    assert read({"do_sample": False, "temperature": 0.7}, 9).sampling["temperature"] == 0
    assert Settings(("b", "ab"), 1, {}).truncated("xaby") == "xa"  # one after another, as the harness does
    for wrong, expected in (
        ({"max_gen_toks": 9}, "max_gen_toks=9: must be at least 1 and less than the model's context of 9"),
        ({"do_sample": True}, "temperature=0.0: must be above 0"),
        ({"topk": 3}, "generation_kwargs.topk=3: unknown; did you mean 'top_k'?"),
    ):
        with pytest.raises(ConfigError, match="^" + expected.split("=")[0]) as error:
            read(wrong, 9)
        assert expected in str(error.value)


def test_a_continuation_that_does_not_fit(ours):
    with pytest.raises(ConfigError, match=r"a continuation of .* tokens.*1 to 48 tokens"):
        ours.loglikelihood(requests("loglikelihood", ("a", " mu kappa" * 99)), disable_tqdm=True)


def test_the_program_runs_tasks_and_writes_tables(gpt2, tasks, tmp_path, capsys):
    flags = ("--checkpoint", gpt2, "--task", "lm_eval", "--tasks", "small_*", "--include-path", tasks)
    flags = (*flags, "--batch-size", 4, "--limit", 3, "--num-fewshot", 1, "--output", tmp_path / "out")
    code, out, _ = call(capsys, evaluate.main, *flags)
    assert code == 0
    [record] = json.loads((tmp_path / "out" / "lm_eval.json").read_text())
    assert set(record["results"]) == set(NAMES)
    assert record["n-samples"]["small_choice"]["effective"] == 3
    assert record["n-shot"]["small_choice"] == 1
    text = (tmp_path / "out" / "lm_eval.md").read_text()
    assert text.strip() == out.strip()
    assert all(name in text for name in NAMES)
    assert "| byte_perplexity |" in text
    assert text.splitlines()[2].startswith("| Tasks ")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--tasks", "small_choise"), "tasks='small_choise': unknown; did you mean 'small_choice'?"),
        (("--tasks", ""), "tasks='': must name tasks of the harness"),
        (("--tasks", "small_choice", "--include-path", "/no/such"), "include_path='/no/such': no such folder"),
        (("--tasks", "small_gone"), "tasks='small_gone': cannot be read (FileNotFoundError"),
        (
            ("--tasks", "small_gone", "--gen-kwargs", "temperature=warm"),
            "generation_kwargs.temperature='warm': must be a",
        ),
        (("--tasks", "small_gone", "--gen-kwargs", "num_beems=2"), "did you mean 'num_beams'?"),
    ],
)
def test_wrong_input_is_one_line(gpt2, tasks, tmp_path, capsys, monkeypatch, flags, expected):
    # Without the harness's own tasks, which take ten seconds to read.
    manager = results.TaskManager
    monkeypatch.setattr(results, "TaskManager", lambda **given: manager(**(given | {"include_defaults": False})))
    gone = (tasks / "small_choice.yaml").read_text().replace("documents.jsonl", "gone.jsonl")
    (tmp_path / "tasks").mkdir()
    for name, text in (("small_choice", gone), ("small_gone", gone.replace("small_choice", "small_gone"))):
        (tmp_path / "tasks" / f"{name}.yaml").write_text(text)
    given = ("--checkpoint", gpt2, "--task", "lm_eval", "--output", tmp_path / "out")
    code, out, err = call(capsys, evaluate.main, *given, "--include-path", tmp_path / "tasks", *flags)
    assert (code, out) == (2, "")
    assert expected in err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_without_the_harness_one_line_says_what_to_install(gpt2):
    script = (
        "import sys; sys.modules['lm_eval'] = None\n"
        "from train import cli, evaluate\n"
        f"cli.run_program(lambda: evaluate.main(['--checkpoint', {str(gpt2)!r}, '--task', 'lm_eval', '--tasks', 'a']))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, env=environment())
    assert run.returncode == 2
    assert run.stderr == "error: task='lm_eval': needs the package lm_eval: pip install 'lm-eval>=0.4.13'\n"


# Run before anything else in a process that shall find neither torch nor what needs it.
WITHOUT_TORCH = """
import importlib.util, sys
NAMES, find = {"torch", "transformers", "accelerate"}, importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in NAMES else find(name, package)
class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name in NAMES:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Nothing())
"""


@pytest.mark.slow
def test_torch_is_not_needed(gpt2, tasks, tmp_path):
    flags = ["--checkpoint", gpt2, "--task", "lm_eval", "--tasks", "small_*", "--limit", 2, "--include-path", tasks]
    flags = [str(flag) for flag in (*flags, "--output", tmp_path / "out")]
    script = f"{WITHOUT_TORCH}\nfrom train import cli, evaluate\ncli.run_program(lambda: evaluate.main({flags}))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, env=environment())
    assert run.returncode == 0, run.stderr
    [record] = json.loads((tmp_path / "out" / "lm_eval.json").read_text())
    assert set(record["results"]) == set(NAMES)
