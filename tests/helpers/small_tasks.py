"""Tasks of the lm-evaluation-harness in files, one of each kind, and a small GPT-2 in a folder for them."""

import json
import random
from pathlib import Path

import jax
import numpy as np
import tiny
from small import random_params
from small_gpt2 import write_vocabulary

from mom_jax.interop.gpt2 import config_from_gpt2
from train.checkpoints import formats
from train.data import tokenizers

CONTEXT = 48
OPTIONS = {"model_type": "gpt2", "n_positions": CONTEXT, "n_embd": 32, "n_head": 2, "n_layer": 2}
NAMES = ("small_choice", "small_cloze", "small_rolling", "small_generate")

_COMMON = """task: {task}
dataset_path: json
dataset_kwargs:
  data_files: {{test: "{file}"}}
  cache_dir: "{cache}"
test_split: test
"""
_KINDS = {
    "small_choice": """output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
fewshot_split: test
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
""",
    "small_cloze": """output_type: loglikelihood
doc_to_text: "{{text.rsplit(' ', 1)[0]}}"
doc_to_target: "{{' ' + text.rsplit(' ', 1)[1]}}"
metric_list:
  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
  - {metric: acc, aggregation: mean, higher_is_better: true}
""",
    "small_rolling": """output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{page}}"
metric_list:
  - {metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}
  - {metric: byte_perplexity, aggregation: weighted_perplexity, higher_is_better: false}
  - {metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}
""",
    "small_generate": """output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[answer]}}"
generation_kwargs:
  until: [" alpha", "\\n"]
  max_gen_toks: 12
  do_sample: false
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
""",
}


def write_tasks(folder: Path) -> Path:
    """Writes the tasks `NAMES` and their documents; returns the folder for `include_path`."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    documents = []
    for i in range(10):
        words = [rng.choice(tiny.WORDS) for _ in range(3 + 7 * i)]  # some longer than the model's context
        choices = [f" {rng.choice(tiny.WORDS)} {rng.choice(tiny.WORDS)}"[: rng.randrange(4, 14)] for _ in range(3)]
        page = "\n".join(" ".join(words) for _ in range(rng.randrange(1, 4))) + " \u00e9\u4e16"
        question = " ".join(words) + " " * (i % 3)  # a context that ends with spaces
        documents.append(
            {"question": question, "choices": choices, "answer": i % 3, "text": " ".join(words), "page": page}
        )
    file = folder / "documents.jsonl"
    file.write_text("".join(json.dumps(document) + "\n" for document in documents))
    for task, kind in _KINDS.items():
        (folder / f"{task}.yaml").write_text(_COMMON.format(task=task, file=file, cache=folder / "cache") + kind)
    return folder


def write_gpt2(folder: Path) -> Path:
    """Writes a random GPT-2 of two layers with its tokenizer, as Hugging Face has them."""
    write_vocabulary(folder.with_name(folder.name + "-vocabulary"), [" ".join(tiny.WORDS) * 20], 300)
    tokenizer = tokenizers.load(folder.with_name(folder.name + "-vocabulary"))
    config = config_from_gpt2(OPTIONS | {"vocab_size": tokenizer.vocab_size})
    params = jax.tree.map(np.asarray, random_params(config))
    formats.write_folder(folder, "huggingface", config, params, tokenizer)
    return folder
