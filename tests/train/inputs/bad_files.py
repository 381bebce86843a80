"""The files of bad_flags.py: a good experiment, run and models, and beside them broken ones."""

import gzip
import json
import os
import shutil
import struct

import tiny

from train.checkpoints import formats, single_file
from train.checkpoints.models import open_model
from train.checkpoints.weights import MARKS

DEEP = "[" * 100_000 + "]" * 100_000


def make(folder):
    """Writes a good experiment, run, GPT-2, single file and token files into `folder`, and beside them broken ones."""
    tiny.write_config(folder)
    run = tiny.store(tiny.config(folder), "pretrain")
    (run / "metrics.jsonl").write_text('{"kind": "train", "phase": "pretrain", "step": 1, "loss": 2.0}\n')
    shutil.copytree(run / "checkpoints" / "pretrain", run / "checkpoints" / "mom")
    shutil.rmtree(run / "checkpoints" / "mom")
    model = open_model(run / "checkpoints" / "pretrain", field="input")
    formats.write_folder(folder / "gpt2", "huggingface", model.config, model.params, model.tokenizer)
    single_file.save(folder / "single.safetensors", model.config, model.params, model.fingerprint)
    (folder / "file").write_text("a file\n")
    (folder / "empty").mkdir()
    os.mkfifo(folder / "pipe")
    _runs(folder, run)
    _weights(folder)
    _tokens(folder)
    _texts(folder)
    _experiments(folder)


def _runs(folder, run):
    config = (run / "config.json").read_text()
    record = json.loads(config)

    def changed(**fields):
        return json.dumps(record | fields)

    model, data = record["model"], record["data"]
    for name, text in {
        "empty": "",
        "cut": config[:100],
        "deep": DEEP,
        "nan": config.replace('"temperature": 1.0', '"temperature": NaN'),
        "infinite": config.replace('"temperature": 1.0', '"temperature": 1e999'),
        "twice": config.replace('"seed": 0', '"seed": 1, "seed": 0'),
        "list": "[1, 2]",
        "latin": config.replace("builtin", "caf\xe9"),
        "unknown": changed(colour="red"),
        "huge": changed(seed=10**30),
        "chunks": changed(model=model | {"num_chunks": 10**9}),
        "half": changed(run="\ud800"),
        "nul": changed(run="a\0b"),
        "text": changed(seed="0"),
        "phases": changed(phases=7),
        "none": changed(data=data | {"length": None}),
    }.items():
        (folder / f"run-{name}").mkdir()
        latin = name == "latin"
        content = text.encode("latin-1") + b"\xe9" if latin else text.encode()
        (folder / f"run-{name}" / "config.json").write_bytes(content)
    (folder / "run-folder" / "config.json").mkdir(parents=True)
    for name, lines in {
        "broken": '{"step": 1}\n{broken\n{"step": 2}\n',
        "nan": '{"step": 1, "loss": NaN}\n{"step": 2}\n',
        "deep": DEEP + '\n{"step": 2}\n',
        "other": '{"step": "one"}\n',
        "shape": '{"step": 1, "phase": "p", "routers": {"ffn": 7}}\n',
        "empty": "",
    }.items():
        (folder / f"log-{name}").mkdir()
        (folder / f"log-{name}" / "metrics.jsonl").write_text(lines)
    shutil.copytree(run, folder / "run-routes")
    (folder / "run-routes" / "routes").mkdir()
    (folder / "run-routes" / "routes" / "mom.json").write_text("[]")
    shutil.copytree(run, folder / "run-link")
    (folder / "run-link" / ".lock").symlink_to(folder / "file")
    shutil.copytree(run, folder / "run-elsewhere")
    shutil.rmtree(folder / "run-elsewhere" / "checkpoints")
    (folder / "run-elsewhere" / "checkpoints").symlink_to(folder / "empty")
    shutil.copytree(run, folder / "run-vocabulary")
    (folder / "run-vocabulary" / "tokenizer.model").write_bytes(b"no model")


def _weights(folder):
    options = json.loads((folder / "gpt2" / "config.json").read_text())
    for name, fields in {
        "layers": {"n_layer": 10**9},
        "wide": {"n_embd": 10**6, "n_head": 1},
        "type": {"model_type": "bert"},
        "option": {"rotary": True},
        "text": {"n_head": "two"},
        "names": {"architectures": 7},
        "activation": {"activation_function": ["gelu"]},
    }.items():
        shutil.copytree(folder / "gpt2", folder / f"gpt2-{name}")
        (folder / f"gpt2-{name}" / "config.json").write_text(json.dumps(options | fields))
    official = {"num_ffn": "eight", "routing_top_k": 1, "router_type": "gru"}
    (folder / "official-text").mkdir()
    (folder / "official-text" / "config.json").write_text(json.dumps(official))
    (folder / "official-text" / "model.safetensors").write_bytes((folder / "gpt2" / "model.safetensors").read_bytes())
    for name, table in {
        "outside": {"weight_map": {"a": "../single.safetensors"}},
        "absolute": {"weight_map": {"a": "/etc/hostname"}},
        "link": {"weight_map": {"a": "link.safetensors"}},
        "missing": {"weight_map": {"a": "model-1.safetensors"}},
        "shape": {"weight_map": ["a"]},
        "number": {"weight_map": {"a": 1}},
    }.items():
        shutil.copytree(folder / "gpt2", folder / f"index-{name}")
        (folder / f"index-{name}" / "model.safetensors").unlink()
        (folder / f"index-{name}" / "model.safetensors.index.json").write_text(json.dumps(table))
    (folder / "index-link" / "link.safetensors").symlink_to(folder / "single.safetensors")
    shutil.copytree(folder / "gpt2", folder / "gpt2-pipe")
    (folder / "gpt2-pipe" / "model.safetensors").unlink()
    (folder / "gpt2-bare").mkdir()
    shutil.copy(folder / "gpt2" / "config.json", folder / "gpt2-bare" / "config.json")

    whole = (folder / "single.safetensors").read_bytes()
    size = struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8 : 8 + size])
    # As an earlier version wrote it: with checksums of the header, each of these would be found by them alone.
    texts = {name: text for name, text in header["__metadata__"].items() if name not in MARKS}
    config = json.loads(texts["config"])

    def single(name, **changes):
        text = json.dumps(header | {"__metadata__": texts | changes}).encode()
        (folder / f"{name}.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + size :])

    single("chunks", config=json.dumps(config | {"num_chunks": 10**9}))
    single("bottom", config=json.dumps(config | {"num_bottom": 10**4}))
    single("deep", config=DEEP)
    single("version", version="99")
    single("format", format="pt")
    (folder / "cut.safetensors").write_bytes(whole[:-100])
    (folder / "long.safetensors").write_bytes(struct.pack("<Q", 2**60) + b"{}")
    (folder / "empty.safetensors").write_bytes(b"")


def _tokens(folder):
    meta = {"dtype": "uint16", "vocab_size": 300, "eos_id": 1}
    for name, facts, content in (
        ("dtype", json.dumps(meta | {"dtype": "O"}), b"\1\0" * 99),
        ("vocabulary", json.dumps(meta | {"vocab_size": 10**12}), b"\1\0" * 99),
        ("deep", DEEP, b"\1\0" * 99),
        ("odd", json.dumps(meta), b"\1\0" * 99 + b"\1"),
        ("empty", json.dumps(meta), b""),
        ("id", json.dumps(meta), b"\xff\xff" * 99),
    ):
        (folder / f"bin-{name}").mkdir()
        (folder / f"bin-{name}" / "meta.json").write_text(facts)
        for side in ("train.bin", "val.bin"):
            (folder / f"bin-{name}" / side).write_bytes(content)
    for name, content in {
        "junk.model": b"junk",
        "empty.model": b"",
        "junk.json": b"junk",
        "deep.json": DEEP.encode(),
        "kind.json": json.dumps({"model": {"type": "WordPiece"}}).encode(),
        "vocabulary.json": json.dumps({"vocab_size": 10**30, "eos_id": 0}).encode(),
    }.items():
        (folder / "tokenizers").mkdir(exist_ok=True)
        (folder / "tokenizers" / name).write_bytes(content)


def _texts(folder):
    for name, content in {
        "latin.txt": "caf\xe9 ".encode("latin-1") * 50,
        "cut.txt.gz": gzip.compress(b"alpha beta " * 5000)[:-20],
        "junk.txt.xz": b"junk",
        "junk.txt.zst": b"junk",
        "lines.jsonl": b'{"text": "alpha"}\n{"text": 7}\n',
        "deep.jsonl": DEEP.encode(),
    }.items():
        (folder / "texts" / name).mkdir(parents=True)
        (folder / "texts" / name / name).write_bytes(content)
        (folder / "texts" / name / "other.txt").write_text("alpha beta\n" * 50)


def _experiments(folder):
    for name, text in {
        "syntax": "x = (\n",
        "none": "x = 1\n",
        "number": "def get_config():\n    return 1\n",
        "module": "import nothing_such\n",
        "zero": "def get_config():\n    return 1 / 0\n",
    }.items():
        (folder / f"{name}.py").write_text(text)
    (folder / "latin.py").write_bytes("x = 'caf\xe9'\n".encode("latin-1"))
