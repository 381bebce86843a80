"""How fast data is prepared and read: `python -m benchmarks.data [--only read,prepare,memory] [--megabytes 500]`.

read     sequences from a token cache, concatenated and packed, as training takes them: million tokens per second
prepare  a text corpus into a cache with GPT-2's BPE and with SentencePiece: million tokens per second and core, on all
         cores. GPT-2's vocabulary is that of --gpt2 FOLDER, or one of as many ids that is trained here
memory   the largest resident memory of `train.prepare` on a text file and on a JSONL file of --megabytes, MiB

Prints one JSON line each. The texts are those of Python's standard library, over and over where they are too few.
"""

import argparse
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from train.config import DataConfig
from train.data.pipeline import TrainingData
from train.data.prepared import Prepared, prepare
from train.data.sources.kinds import open_source

PARTS = ("read", "prepare", "memory")
READ_SECONDS = 5.0


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.data", description=__doc__.split("\n")[0])
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas between")
    parser.add_argument("--megabytes", type=int, default=500, help="of the corpus whose preparation is watched")
    parser.add_argument("--gpt2", help="a folder with GPT-2's vocab.json and merges.txt")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for part in flags.only.split(","):
            for record in {"read": _read, "prepare": _prepare, "memory": _memory}[part](Path(folder), flags):
                print(json.dumps({"part": part, **record}), flush=True)


def _read(folder: Path, flags: Any) -> Iterator[dict[str, Any]]:
    tokens, documents = 50_000_000, 50_000
    source = folder / "bin"
    source.mkdir()
    rng = np.random.default_rng(0)
    for name, count in (("train.bin", tokens), ("val.bin", tokens // 100)):
        ids = rng.integers(0, 50256, count).astype(np.uint16)
        ids[rng.integers(0, count, documents * count // tokens)] = 50256
        ids.tofile(source / name)
    for packing in ("concatenate", "documents"):
        data = DataConfig(
            source=f"bin:{source}",
            packing=packing,
            batch_size=16,
            length=1024,
            cache=str(folder / "cache"),
        )
        prepared: Prepared = prepare(data)
        start = time.perf_counter()
        training = TrainingData(prepared, data)
        set_up = time.perf_counter() - start
        batches = training.batches(examples_seen=0)
        next(batches)
        read, start = 0, time.perf_counter()
        while (seconds := time.perf_counter() - start) < READ_SECONDS:
            read += next(batches)["tokens"].size
        batches.close()
        yield {"packing": packing, "million_tokens_per_s": read / seconds / 1e6, "set_up_s": set_up}


def _texts() -> list[str]:
    return [document.text for document in open_source("builtin:stdlib").documents()]


def _gpt2(folder: Path, given: str | None) -> str:
    """A folder with a byte-level BPE of GPT-2's size."""
    if given:
        return given
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=50257, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    (folder / "gpt2").mkdir()
    tokenizer.model.save(str(folder / "gpt2"))
    return str(folder / "gpt2")


def _prepare(folder: Path, flags: Any) -> Iterator[dict[str, Any]]:
    corpus = folder / "corpus"
    corpus.mkdir()
    texts = _texts()
    for i, text in enumerate(itertools.chain(texts, texts, texts, texts)):
        (corpus / f"{i}.txt").write_text(text)
    tokenizers = {"sentencepiece": "sentencepiece", "gpt2": _gpt2(folder, flags.gpt2)}
    cores = len(os.sched_getaffinity(0))
    for name, tokenizer in tokenizers.items():
        prepare(DataConfig(source="builtin:stdlib", tokenizer=tokenizer, cache=str(folder / "cache")))  # loads, trains
        data = DataConfig(source=f"text:{corpus}/*.txt", tokenizer=tokenizer, cache=str(folder / "cache"))
        if name == "sentencepiece":
            [model] = (folder / "cache").glob("tokenizer-*/tokenizer.model")
            data = DataConfig(source=data.source, tokenizer=str(model), cache=data.cache)
        start, used = time.perf_counter(), time.process_time()
        prepared = prepare(data)
        seconds, used = time.perf_counter() - start, time.process_time() - used
        tokens = prepared.train[0].num_tokens + prepared.validation[0].num_tokens
        speed = tokens / 1e6
        record = {"tokenizer": name, "vocabulary": prepared.tokenizer.vocab_size, "million_tokens": speed}
        yield record | {"per_s_and_core": speed / seconds / cores, "per_s_of_cpu_time": speed / used, "cores": cores}


def _memory(folder: Path, flags: Any) -> Iterator[dict[str, Any]]:
    texts = _texts()
    for name in ("all.txt", "all.jsonl"):
        corpus = folder / name
        with corpus.open("w") as file:
            for text in itertools.cycle(texts):
                file.write(text if name == "all.txt" else json.dumps({"text": text}) + "\n")
                if file.tell() > flags.megabytes * 1e6:
                    break
        command = [sys.executable, "-m", "train.prepare", f"text:{corpus}", "--cache", str(folder / f"cache-{name}")]
        start = time.perf_counter()
        subprocess.run([*command, "--json"], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        # Of all processes so far: the files come in the order of what they need.
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        yield {"corpus": name, "megabytes": flags.megabytes, "peak_mib": peak, "seconds": time.perf_counter() - start}
        corpus.unlink()


if __name__ == "__main__":
    main()
