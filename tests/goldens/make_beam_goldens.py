"""Makes tests/goldens/gpt2_beams.json: what `transformers` generates with beams and penalties from tests/goldens/gpt2.

    python tests/goldens/make_beam_goldens.py        (needs the extra [torch]; about ten seconds)

A list of cases: the model's name, the prompts, `new` (max_new_tokens), the settings with our names, `eos_id`, and
`tokens`, the new ones of each prompt without eos. Only cases are kept whose tokens stay when every weight is changed by
about one part in 100,000: rounding must not decide one.
"""

import itertools
import json
from pathlib import Path

import numpy as np
import torch
import transformers

FOLDER = Path(__file__).parents[1] / "goldens"
FILE = FOLDER / "gpt2_beams.json"
LENGTHS = ((11, 11), (11, 4, 7))
SETTINGS = (
    {"num_beams": 2},
    {"num_beams": 4, "length_penalty": 0.0, "early_stopping": "never"},
    {"num_beams": 4, "length_penalty": 2.0, "early_stopping": True},
    {"num_beams": 3, "length_penalty": -1.0, "early_stopping": False},
    {"num_beams": 3, "length_penalty": 1.5, "early_stopping": "never"},
    {"num_beams": 3, "repetition_penalty": 1.8},
    {"temperature": 0.0, "repetition_penalty": 1.5},
)
NEW = 8


def load(name):
    """A stored model."""
    options = json.loads((FOLDER / "gpt2" / f"{name}.json").read_text())["config"]
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**options)).eval()
    with np.load(FOLDER / "gpt2" / f"{name}.npz") as file:
        state = {key.removeprefix("state/"): torch.from_numpy(a) for key, a in file.items() if key.startswith("state/")}
    model.load_state_dict(state)
    return model


def run(model, prompts, new, settings, eos_id):
    """The new tokens of each prompt, without eos."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    given = {key: value for key, value in settings.items() if key != "temperature"}
    pad = {"pad_token_id": 0 if eos_id != 0 else 1, "eos_token_id": eos_id}
    out = model.generate(ids, attention_mask=mask, max_new_tokens=new, do_sample=False, **given, **pad)
    rows = [row[width:] for row in out.tolist()]
    # What comes after eos is padding; a shorter best hypothesis than others' is filled up too.
    return [row[: row.index(eos_id)] if eos_id in row else row for row in rows]


def shaken(name, seed):
    """The same model but for rounding."""
    model, generator = load(name), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 1e-5 * torch.randn(parameter.shape, generator=generator))
    return model


def main():
    cases, rng = [], np.random.default_rng(0)
    for name, lengths, settings in itertools.product(("tied", "untied"), LENGTHS, SETTINGS):
        if "repetition_penalty" in settings and len(set(lengths)) > 1:
            continue  # theirs punishes the padding token too
        models = [load(name), *(shaken(name, seed) for seed in range(3))]
        for _ in range(50):
            prompts = [rng.integers(1, 31, n).tolist() for n in lengths]
            plain = run(models[0], prompts, NEW, {"temperature": 0.0}, None)
            eos_id = int(plain[0][rng.integers(2, 6)])  # of which greedy decoding thinks highly
            found = [run(model, prompts, NEW, settings, eos_id) for model in models]
            if all(tokens == found[0] for tokens in found) and any(0 < len(row) < NEW for row in found[0]):
                case = {"model": name, "prompts": prompts, "new": NEW, "settings": settings, "eos_id": eos_id}
                cases.append(case | {"tokens": found[0]})
                break
        else:
            raise SystemExit(f"no telling case for {name}, {lengths}, {settings}")
    lines = ",\n".join(json.dumps(case) for case in cases)
    FILE.write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
