"""`train.prepare` and training on what it prepared, as a user runs them."""

import gzip
import json
import random
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tiny
from downloads import openwebtext_files
from programs import ROOT, call, environment

from train import checkpoint, main, prepare
from train.data import tokenizers
from train.reporting import metrics
from train.training import ending

pytestmark = pytest.mark.usefixtures("shared_steps")


def jsonl(folder, documents=60):
    """Documents of the tiny corpus' words, compressed; returns the source."""
    lines = []
    for i in range(documents):
        rng = random.Random(i)
        lines.append(json.dumps({"text": " ".join(rng.choice(tiny.WORDS) for _ in range(60))}))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "all.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    return f"text:{folder}/*.jsonl.gz"


@pytest.fixture
def flags(tmp_path):
    return ("--vocab-size", "300", "--validation-fraction", "0.2", "--cache", tmp_path / "cache")


def test_a_second_call_does_nothing(tmp_path, capsys, flags):
    source = jsonl(tmp_path / "corpus")
    code, out, err = call(capsys, prepare.main, source, *flags, "--json")
    assert (code, "tokenizing" in err) == (0, True)
    [record] = json.loads(out)["sources"]
    assert record["train"]["documents"] + record["validation"]["documents"] == 60
    assert json.loads((tmp_path / record["folder"] / "meta.json").read_text())["source"]["source"] == source
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")}
    code, again, err = call(capsys, prepare.main, source, *flags, "--json")
    assert (code, again, err) == (0, out, "")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")} == files


def test_checksums(tmp_path, capsys, flags):
    source = jsonl(tmp_path / "corpus")
    code, out, _ = call(capsys, prepare.main, source, *flags, "--verify")
    assert code == 0
    assert "checksums are right" in out
    [file] = (tmp_path / "cache").rglob("train.bin")
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)
    code, _, err = call(capsys, prepare.main, source, *flags, "--verify")
    assert code == 2
    assert err.startswith(f"error: data.cache: '{file}' has the checksum ")
    assert err.endswith("delete its folder to have it made again\n")


def test_a_configurations_data(tmp_path, capsys):
    file = tiny.write_config(tmp_path)
    code, out, _ = call(capsys, prepare.main, "--config", file)
    assert code == 0
    assert out.startswith(f"text:{tmp_path}/corpus/*.txt: train ")
    code, _, err = call(capsys, main.main, "--config", file, "--dry-run")
    assert code == 0
    assert "tokenizing" not in err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), "source: name one, or a configuration with --config FILE"),
        (("text:/no/such/*",), "data.source='text:/no/such/*': there is no folder '/no/such'"),
        (("--config", "none.py"), "config='none.py': no such file"),
        (("tfds:no_such_data",), "data.source='tfds:no_such_data': "),
        (("builtin:stdlib", "--validation-fraction", "2"), "validation_fraction=2.0: must lie between 0 and 1"),
    ],
)
def test_wrong_input_is_one_line(tmp_path, capsys, monkeypatch, arguments, expected):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    code, out, err = call(capsys, prepare.main, *arguments, "--cache", tmp_path / "cache")
    assert (code, out) == (2, "")
    assert expected in err
    assert err.count("\n") == 1
    assert not (tmp_path / "cache").exists()


@pytest.mark.slow
def test_ctrl_c_in_the_middle(tmp_path, flags):
    """Ends with one line; the same command then goes on to what an uninterrupted one gives."""
    source = jsonl(tmp_path / "corpus", 3000)
    # Whoever starts the tests in the background may have had Ctrl-C ignored.
    program = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    program += "from train.data import encode; encode.BATCH, encode.COMMIT_SECONDS = 2000, 0.0; {}"
    slow = "import time; original = encode._Batch.results\ndef wait(*a): time.sleep(0.02); return original(*a)\n"
    slow += "encode._Batch.results = wait\n"
    end = "from train import cli, prepare; cli.run_program(lambda: prepare.main(sys.argv[1:]))"
    command = [source, *map(str, flags)]

    def start(code, *arguments):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        call = [sys.executable, "-W", "error", "-c", code, *arguments]
        return subprocess.Popen(call, cwd=ROOT, env=environment(), **pipes)

    with start(program.format(slow + end), *command) as process:
        journal = next(iter(wait_for(lambda: list((tmp_path / "cache").glob(".data-*.partial/journal.json")))))
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err.endswith("interrupted\n")
    assert "Traceback" not in err
    done = json.loads(journal.read_text())["pieces"]
    assert 0 < done < 3000
    with start(program.format(end), *command, "--verify") as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "checksums are right" in out
    other = ["--cache", str(tmp_path / "other")]
    with start(program.format(end), *command[:-2], *other) as process:
        assert process.communicate(timeout=60)[0] == out.replace("; checksums are right", "")
    for name in ("train.bin", "val.bin", "train.ends", "val.ends"):
        [a], [b] = ([*(tmp_path / folder).rglob(name)] for folder in ("cache", "other"))
        assert a.read_bytes() == b.read_bytes()


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return result


def last_loss(run):
    return [r for r in metrics.read(run / "metrics.jsonl") if r["kind"] == "final"][-1]["loss"]


@pytest.mark.slow
def test_training_on_compressed_jsonl_in_whole_documents(tmp_path, capsys):
    """Packed documents through both phases, with interruption and resumption, and evaluation of the result."""
    file, source = tiny.write_config(tmp_path), jsonl(tmp_path / "jsonl")
    flags = ("--config", file, "--data.source", source, "--data.packing", "documents", "--model.vocab-size", "0")
    code, _, err = call(capsys, main.main, *flags)
    assert code == 0
    documents = re.search(r"tokens of (\d+) documents in .* padding; (\d+) longer documents are cut", err)
    assert documents[1] == documents[2]  # a window has 16 tokens
    found = checkpoint.find(tmp_path / "run", field="run").meta()
    assert found.config.model.vocab_size == 300
    records = [r for r in metrics.read(tmp_path / "run" / "metrics.jsonl") if r["kind"] == "train"]
    assert [r["epoch"] for r in records] == sorted(r["epoch"] for r in records)
    assert all(0 <= r["data_wait"] <= 1 for r in records if r["data_wait"] is not None)
    assert last_loss(tmp_path / "run") < 5.7
    # The same command again has nothing to do.
    assert call(capsys, main.main, *flags)[0] == 0


@pytest.mark.slow
def test_openwebtext_from_its_archives_to_a_trained_model(internet, tmp_path, capsys):
    """Downloaded, unpacked, tokenized and trained on by the programs; only the internet is not the real one."""

    def document(subset, number):
        rng = random.Random(subset * 3 + number)
        return "\n\n\n\n".join(" ".join(rng.choice(tiny.WORDS) for _ in range(40)) for _ in range(2)) + "\n"

    internet.update(openwebtext_files(document))
    config = tiny.write_config(tmp_path)
    data = ("--data.source", "tfds:openwebtext", "--data.cache", tmp_path / "owt")
    code, _, err = call(capsys, main.main, "--config", config, *data)
    assert code == 2
    assert err.endswith("run: python -m train.prepare tfds:openwebtext\n")
    code, out, _ = call(
        capsys, prepare.main, "tfds:openwebtext", "--config", config, "--cache", tmp_path / "owt", "--json"
    )
    assert code == 0
    [record] = json.loads(out)["sources"]
    assert record["train"]["documents"] + record["validation"]["documents"] == 63
    internet.clear()  # from here on nothing is downloaded
    code, _, err = call(capsys, main.main, "--config", config, *data)
    assert code == 0, err
    assert "tokenizing" not in err
    assert f"training data: tfds:openwebtext: {record['train']['tokens']:,} tokens" in err
    found = checkpoint.find(tmp_path / "run", field="run")
    [cache] = (tmp_path / "owt").glob("data-*")
    ids = np.fromfile(cache / "train.bin", np.uint16)
    text = tokenizers.load(tmp_path / "run").decode(ids[: np.fromfile(cache / "train.ends", np.int64)[0]].tolist())
    expected = [
        document(subset, number).strip().replace("\n\n\n\n", "\n\n") for subset in range(21) for number in range(3)
    ]
    assert text in expected
    assert found.meta().phase == "mom"


@pytest.mark.slow
def test_training_on_a_mixture_of_token_files(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for name, low in (("one", 0), ("two", 100)):
        folder = tmp_path / name
        folder.mkdir()
        for file in ("train.bin", "val.bin"):
            rng.integers(low, low + 100, 2000).astype(np.uint16).tofile(folder / file)
        (folder / "meta.json").write_text('{"dtype": "uint16", "vocab_size": 250, "eos_id": null}')
    file = tiny.write_config(tmp_path)
    source = f"mix:3=bin:{tmp_path}/one,1=bin:{tmp_path}/two"
    flags = ("--config", file, "--data.source", source, "--model.vocab-size", "0", "--workdir", tmp_path / "other")
    code, _, err = call(capsys, main.main, *flags)
    assert code == 0, err
    assert f"training data: bin:{tmp_path}/two: 2,000 tokens in 125 sequences of 16, 0 left over" in err
    assert (tmp_path / "other" / "vocabulary.json").exists()
    assert not (tmp_path / "run").exists()
    sample = metrics.read(tmp_path / "other" / "metrics.jsonl")[-1]["sample"]
    words = sample.split()
    assert len(words) == ending.PROMPT_TOKENS + ending.SAMPLE_TOKENS
    assert all(int(word) < 250 for word in words)


def nanogpt(folder, tokens=20_000):
    """Files as nanoGPT's data/openwebtext/prepare.py writes them."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for file, count in (("train.bin", tokens), ("val.bin", tokens // 2)):
        ids = rng.integers(0, 50256, count)
        ids[99::100] = 50256
        array = np.memmap(folder / file, dtype=np.uint16, mode="w+", shape=(count,))
        array[:] = ids
        array.flush()
    return f"bin:{folder}"


@pytest.mark.slow
def test_the_quickstart_on_nanogpts_files(tmp_path):
    """With no flag for the data but its place; the steps are few and the second phase is none, to save time."""
    source = nanogpt(tmp_path / "owt")
    command = [
        sys.executable,
        "-m",
        "train.main",
        "--config",
        "configs/quickstart.py",
        "--workdir",
        str(tmp_path / "x"),
    ]
    short = [
        "--phases.0.steps",
        "3",
        "--phases.1.steps",
        "1",
        "--phases.1.model",
        "vanilla",
        "--final-batches",
        "2",
        "--data.validation-batches",
        "2",
    ]
    short += [f"--phases.{i}.optim.warmup-steps=1" for i in (0, 1)] + ["--data.cache", str(tmp_path / "cache")]
    done = subprocess.run(
        [*command, "--data.source", source, *short], capture_output=True, text=True, cwd=ROOT, env=environment()
    )
    assert done.returncode == 0, done.stderr
    assert "20,000 tokens in 156 sequences of 128, 32 left over" in done.stderr
    assert checkpoint.find(tmp_path / "x", field="run").meta().config.model.vocab_size == 50257
    assert (tmp_path / "x" / "report.html").exists()
