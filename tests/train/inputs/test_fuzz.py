"""Every parser, given what hypothesis makes: a value or one line, a `ConfigError`; nothing else, and soon.

Inputs are junk, or what the programs write with something in it replaced, removed, cut off or flipped.
"""

import copy
import json
import struct

import numpy as np
import pytest
import tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from mom_jax.config import ModelConfig
from mom_jax.fields import ConfigError, from_dict, shown, to_dict
from mom_jax.interop import gpt2, official
from train.checkpoints import formats, manifest, single_file
from train.checkpoints.manager import Meta
from train.checkpoints.run_config import read_config
from train.checkpoints.weights import open_weights
from train.config import Config, DataConfig
from train.data import tokenizers
from train.data.cache import TokenCache
from train.data.documents import Part, Source
from train.data.encode import _read_journal
from train.data.prepared import components
from train.data.sources.text_files import open_text
from train.data.sources.tfds_builder import _check_features
from train.data.token_files import index, open_token_files
from train.data.tokenizers.spm import train_sentencepiece
from train.files import parse_json, with_checksum, within
from train.reporting.page import summary
from train.reporting.routes import read_routes
from train.tasks import results
from train.training.profile import parse_profile

NUMBERS = st.one_of(st.integers(-3, 70000), st.sampled_from([2**31, 2**63, 10**30, -(10**30), 10**400]), st.floats())
TEXTS = st.one_of(st.text(max_size=6), st.sampled_from(["\0", "\ud800", "../x", "/etc", "-inf", "inf", "é" * 300, "1"]))
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
JUNK = st.recursive(LEAVES, lambda x: st.lists(x, max_size=3) | st.dictionaries(TEXTS, x, max_size=3), max_leaves=6)
DEEP = "[" * 3000


@st.composite
def changed(draw, valid):
    """A JSON value with something else in one or two places, or none of these there."""
    whole = [copy.deepcopy(valid)]
    for _ in range(draw(st.integers(1, 2))):
        node, key = whole, 0
        while isinstance(node[key], dict | list) and node[key] and draw(st.integers(0, 5)):
            node = node[key]
            key = draw(st.sampled_from(sorted(node))) if isinstance(node, dict) else draw(st.integers(0, len(node) - 1))
        if node is not whole and isinstance(node, dict) and draw(st.booleans()):
            del node[key]
        else:
            node[key] = draw(JUNK)
    return whole[0]


def written(value):
    try:
        return json.dumps(value).encode()
    except ValueError:  # an integer of more digits than Python writes
        return b"1" * 5000


def jsons(valid):
    """Files: a changed value, or damaged bytes of the right one."""
    return st.one_of(changed(valid).map(written), damaged(json.dumps(valid).encode()), st.just(DEEP.encode()))


@st.composite
def damaged(draw, content):
    """Bytes of which the end is missing or some are others; or any bytes."""
    how = draw(st.integers(0, 3))
    if how == 0:
        return draw(st.binary(max_size=64))
    if how == 1:
        return content[: draw(st.integers(0, len(content)))]
    flipped = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        flipped[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    return bytes(flipped)


CONFIG = to_dict(Config())
MODEL = ModelConfig(vocab_size=8, context_length=4, d_model=4, num_heads=2, num_bottom=0, num_top=0, num_steps=1)
VANILLA = ModelConfig(vocab_size=8, context_length=4, d_model=4, num_heads=2).vanilla()
META = {"config": CONFIG, "phase": "mom", "step": 3, "examples_seen": 12, "tokenizer": "ab"}
SIDE = {"file": "train.bin", "tokens": 6, "documents": 2, "crc32": 1, "ends_crc32": 1}
CACHE = {"format": 2, "source": {}, "vocab_size": 9, "eos_id": 1, "dtype": "uint16", "tokenizer": "ab"}
CACHE |= {"train": SIDE, "validation": SIDE}
BIN = {"dtype": "uint16", "vocab_size": 9, "eos_id": 1, "tokenizer": "ab"}
WRITTEN = {"tokens": 1, "documents": 1, "crc32": 1, "ends_crc32": 1}
JOURNAL = {"part": 0, "name": "p", "pieces": 1, "train": WRITTEN, "validation": WRITTEN}
ROUTERS = {side: {"usage": [[0.5, 0.5]], "entropy": [0.5], "skip": 0.1} for side in ("attention", "ffn")}
RECORD = {"kind": "train", "phase": "mom", "step": 3, "loss": 2.0, "seconds": 0.1, "data_wait": 0.0, "routers": ROUTERS}
MANIFEST = {"version": 1, "checksum": "crc32", "files": {"meta/metadata": [2, 2745614147], "params/x": [0, 0]}}
FEATURES = {"pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict"}
FEATURES["featuresDict"] = {
    "features": {"text": {"pythonClassName": "tensorflow_datasets.core.features.text_feature.Text"}}
}
HEADER = {"format": "mom_jax", "version": "1", "config": json.dumps(to_dict(MODEL)), "tokenizer": ""}
BYTES = {chr(i) if 33 <= i < 127 else chr(256 + i): i for i in range(256)}
TOKENIZER = {"model": {"type": "BPE", "vocab": BYTES | {"<|endoftext|>": 256}, "merges": []}}
TOKENIZER |= {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False}, "decoder": {"type": "ByteLevel"}}
ARRAYS = save({"a": np.zeros((2, 3), np.float32), "b": np.zeros(4, np.int64)}, {"format": "pt"})


def safetensors(header):
    text = written(header)
    return struct.pack("<Q", len(text)) + text + bytes(24)


TENSOR = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


def put(folder, name, content):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
    return folder / name


def a_cache(folder, content):
    put(folder, "meta.json", content)
    for stem in ("train", "val"):
        put(folder, f"{stem}.bin", np.array([2, 3, 1, 4, 5, 1], np.uint16).tobytes())
        put(folder, f"{stem}.ends", np.array([3, 6], np.int64).tobytes())
    for side in ("train", "validation"):
        cache = TokenCache.open(folder, side)
        cache.checked(cache.tokens)
        assert len(cache.starts) == cache.num_documents + 1


def a_manifest(folder, content):
    put(folder, "3/meta/metadata", b"{}")
    put(folder, "3/params/x", b"")
    put(folder, f"3/{manifest.MANIFEST}", content)
    assert len(str(manifest.problem(folder / "3"))) < 4000


def some_ends(folder, content):
    a_cache(folder, json.dumps(CACHE).encode())
    put(folder, "train.ends", content)
    assert TokenCache.open(folder, "train").starts[-1] == 6


def token_files(folder, content):
    put(folder, "bin/meta.json", content)
    for stem in ("train", "val"):
        put(folder, f"bin/{stem}.bin", bytes(range(8)))
    index(folder / "cache", open_token_files(f"bin:{folder}/bin"), lambda text: None)


def weights(folder, content):
    put(folder, "model.safetensors", content)
    found = open_weights(folder, "input")
    assert {name: found[name].shape for name in found} == found.shapes


def an_index(folder, content):
    put(folder, "a.safetensors", ARRAYS)
    put(folder, "model.safetensors.index.json", content)
    assert set(open_weights(folder, "input").files) <= {folder / "a.safetensors"}


def texts(name):
    def read(folder, content):
        put(folder, name, content)
        list(open_text(f"text:{folder}/{name}", 0.5).documents())

    return read


def a_tokenizer(name):
    def read(folder, content):
        tokenizer = tokenizers.load(put(folder, name, content), field="tokenizer")
        assert tokenizer.eos_id < tokenizer.vocab_size
        if name != "vocabulary.json":
            assert max(tokenizer.encode("a b é\n"), default=0) < tokenizer.vocab_size

    return read


def a_model(read, config):
    return lambda folder, options: config(read(options)) if isinstance(read(options), dict) else None


def options(content):
    return parse_json(content, "config.json")


SOURCE = Source("s", (Part("p", 1, lambda: iter(())),), {})
# Each parser: what it is given, and how it is called.
PARSERS = {
    "json": (st.one_of(st.binary(max_size=40), JUNK.map(written)), lambda folder, text: parse_json(text, "file")),
    "config": (jsons(CONFIG), lambda folder, text: read_config(put(folder, "config.json", text).parent, "run")),
    "meta": (changed(META), lambda folder, value: from_dict(Meta, value)),
    "format": (jsons(CONFIG), lambda folder, text: formats.detect(put(folder, "config.json", text).parent, "input")),
    "journal": (
        changed(JOURNAL).filter(lambda value: isinstance(value, dict)).map(with_checksum).map(written),
        lambda folder, text: _read_journal(put(folder, "journal.json", text), SOURCE),
    ),
    "log": (jsons(RECORD), lambda folder, text: summary(put(folder, "metrics.jsonl", text + b"\n" + text).parent)),
    "routes": (
        jsons({"version": 1}),
        lambda folder, text: read_routes(put(folder, "routes/p.json", text).parents[1], []),
    ),
    "result": (jsons({"version": 1}), lambda folder, text: results.read(put(folder, "result.json", text))),
    "cache": (jsons(CACHE), a_cache),
    "manifest": (jsons(MANIFEST), a_manifest),
    "ends": (damaged(np.array([3, 6], np.int64).tobytes()), some_ends),
    "token files": (jsons(BIN), token_files),
    "features": (jsons(FEATURES), lambda folder, text: _check_features("tfds:x", put(folder, "features.json", text))),
    "safetensors": (st.one_of(damaged(ARRAYS), changed({"a": TENSOR}).map(safetensors)), weights),
    "index": (jsons({"metadata": {}, "weight_map": {"a": "a.safetensors", "b": "a.safetensors"}}), an_index),
    "single file": (
        changed({"__metadata__": HEADER, "embed.tokens": TENSOR}).map(safetensors),
        lambda folder, content: single_file.load(put(folder, "x.safetensors", content), "input"),
    ),
    "model": (changed(to_dict(MODEL)), lambda folder, value: from_dict(ModelConfig, value)),
    "gpt2": (jsons(gpt2.config_to_gpt2(VANILLA)), a_model(options, gpt2.config_from_gpt2)),
    "official": (
        jsons(official.config_to_official(ModelConfig.official())),
        a_model(options, official.config_from_official),
    ),
    "vocabulary.json": (jsons({"vocab_size": 9, "eos_id": 1}), a_tokenizer("vocabulary.json")),
    "tokenizer.json": (jsons(TOKENIZER), a_tokenizer("tokenizer.json")),
    "text.jsonl": (jsons({"text": "alpha"}), texts("a.jsonl")),
    "text.txt": (st.binary(max_size=200), texts("a.txt")),
    "text.gz": (st.binary(max_size=200), texts("a.txt.gz")),
    "mixture": (TEXTS.map("mix:0.5=a,".__add__), lambda folder, text: components(text)),
    "profile": (st.one_of(TEXTS, st.just("1:" + "9" * 5000)), lambda folder, text: parse_profile(text)),
    "part": (JUNK, lambda folder, value: within(folder, value, "index")),
    "data": (changed(to_dict(DataConfig())), lambda folder, value: from_dict(DataConfig, value)),
}


def fuzz(folder, strategy, parse, examples):
    @settings(
        max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(strategy)
    def run(value):
        complaint = ""
        try:
            parse(folder, value)
        except ConfigError as error:
            complaint = str(error)
        assert len(complaint) < 4000

    run()


@pytest.mark.parametrize("name", PARSERS)
def test_a_value_or_one_line(tmp_path, name):
    fuzz(tmp_path, *PARSERS[name], 12)


@pytest.mark.slow
@pytest.mark.parametrize("name", PARSERS)
def test_a_value_or_one_line_long(tmp_path, name):
    fuzz(tmp_path, *PARSERS[name], 100)


@pytest.mark.slow
def test_sentencepiece_models(tmp_path):
    model = train_sentencepiece([" ".join(tiny.WORDS) * 20], 280)
    fuzz(tmp_path, damaged(model), a_tokenizer("tokenizer.model"), 150)


@pytest.mark.slow
def test_pickled_weights(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"a": torch.zeros(2, 3)}, tmp_path / "pytorch_model.bin")
    content = (tmp_path / "pytorch_model.bin").read_bytes()

    def parse(folder, value):
        put(folder, "pytorch_model.bin", value)
        found = open_weights(folder, "input")
        assert {name: found[name].shape for name in found} == found.shapes

    fuzz(tmp_path, damaged(content), parse, 60)


def test_values_in_messages_are_one_line_whatever_they_are():
    deep: list = []
    for _ in range(10**5):
        deep = [deep]
    assert shown(deep) == "<list>"
    assert shown(10**5000) == "<int>"
    assert "(10,002 characters)" in shown("x" * 10**4)
    while deep:  # Python's own end of such a list can overflow the stack
        deep = deep.pop()
