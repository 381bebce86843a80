"""Generation against `transformers`: stored results (tests/goldens/make_beam_goldens.py), and live ones with torch."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest

import mom_jax as mom
from mom_jax.generation import sampling
from mom_jax.generation.settings import Settings
from mom_jax.interop.gpt2 import config_from_gpt2, params_from_gpt2

FOLDER = Path(__file__).parents[1] / "goldens"
CASES = json.loads((FOLDER / "gpt2_beams.json").read_text())


@functools.cache
def decoder(name):
    options = json.loads((FOLDER / "gpt2" / f"{name}.json").read_text())["config"]
    with np.load(FOLDER / "gpt2" / f"{name}.npz") as file:
        state = {key.removeprefix("state/"): a for key, a in file.items() if key.startswith("state/")}
    return mom.Decoder(mom.with_parameters(config_from_gpt2(options), params_from_gpt2(state, options)))


def test_the_stored_cases_cover_what_there_is():
    settings = [case["settings"] for case in CASES]
    assert {s.get("early_stopping") for s in settings} >= {True, False, "never"}
    assert len({s.get("length_penalty") for s in settings}) > 3
    assert any(s.get("num_beams", 1) > 1 and "repetition_penalty" in s for s in settings)
    lengths = [len(tokens) for case in CASES for tokens in case["tokens"]]
    assert len(set(lengths)) > 3  # some end by eos, some do not
    assert any(len({len(prompt) for prompt in case["prompts"]}) > 1 for case in CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['model']} {case['settings']} {len(case['prompts'])}")
def test_beams_and_penalties_are_theirs(case):
    got = decoder(case["model"]).generate(case["prompts"], case["new"], eos_id=case["eos_id"], **case["settings"])
    assert got == case["tokens"]


def test_beams_of_a_batch_are_those_of_its_prompts():
    """Also where one prompt's search ends before the others'."""
    case = next(case for case in CASES if len(case["prompts"]) > 2)
    own = decoder(case["model"])
    for prompt, expected in zip(case["prompts"], case["tokens"], strict=True):
        assert own.generate([prompt], case["new"], eos_id=case["eos_id"], **case["settings"]) == [expected]


def test_a_stop_function_ends_a_hypothesis():
    case = next(case for case in CASES if case["settings"].get("num_beams", 1) > 1 and case["tokens"][0])
    own, prompt = decoder(case["model"]), case["prompts"][:1]
    settings = {"eos_id": None, "num_beams": 3}
    by_function = own.generate(prompt, 8, stop=lambda tokens: tokens[-1] == case["eos_id"], **settings)[0]
    by_eos = own.generate(prompt, 8, **(settings | {"eos_id": case["eos_id"]}))[0]
    assert by_function == (by_eos if len(by_eos) == 8 else [*by_eos, case["eos_id"]])


@pytest.mark.slow
def test_processors_are_theirs():
    torch = pytest.importorskip("torch", reason="needs the [torch] extra")
    transformers = pytest.importorskip("transformers", reason="needs the [torch] extra")
    theirs = transformers.generation.logits_process
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(5, 60)).astype(np.float32) * 2
    ids = rng.integers(0, 60, (5, 12))
    seen = np.zeros_like(logits, bool)
    np.put_along_axis(seen, ids, True, 1)
    for top_k, top_p, temperature, penalty in [(9, 0.7, 0.7, 1.3), (60, 0.4, 2.0, 0.8), (3, 0.99, 1.0, 1.0)]:
        want = torch.from_numpy(logits)
        for processor in (
            theirs.RepetitionPenaltyLogitsProcessor(penalty),
            theirs.TemperatureLogitsWarper(temperature),
            theirs.TopKLogitsWarper(top_k),
            theirs.TopPLogitsWarper(top_p),
        ):
            want = processor(torch.from_numpy(ids), want)
        settings = Settings(temperature, top_k, top_p, penalty)
        values = sampling.values(settings, 60)
        got = sampling.penalise(logits, seen, values.repetition_penalty) / values.temperature
        got = sampling.restrict(got, sampling.candidates(settings, 60), values)
        np.testing.assert_allclose(got, want.numpy(), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_live_beams(seed):
    pytest.importorskip("torch", reason="needs the [torch] extra")
    pytest.importorskip("transformers", reason="needs the [torch] extra")
    import make_beam_goldens as theirs

    rng, model = np.random.default_rng(seed + 100), theirs.load("tied")
    for settings in (*theirs.SETTINGS, {"num_beams": 5, "length_penalty": 0.3}):
        prompts = [rng.integers(1, 31, 6).tolist() for _ in range(2)]
        eos_id = int(rng.integers(1, 31))
        want = theirs.run(model, prompts, 12, settings, eos_id)
        assert decoder("tied").generate(prompts, 12, eos_id=eos_id, **settings) == want
