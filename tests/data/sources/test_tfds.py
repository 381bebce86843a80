"""Sources in TFDS: what is read of a prepared data set, in which order, and what is said where that cannot be."""

import errno
import http.server
import itertools
import json
import pickle
import shutil
import socket
import tarfile
import threading
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import downloader

from mom_jax.fields import ConfigError
from train.data.documents import Document
from train.data.sources import tfds as module
from train.data.sources.builders import BUILDERS, openwebtext
from train.data.sources.tfds import open_tfds
from train.data.sources.tfds_builder import data_dir, download_tfds


class MomWords(tfds.core.GeneratorBasedBuilder):
    """`content`: the examples by split, or an exception to raise on the way; `keys`: the text features."""

    VERSION = tfds.core.Version("1.2.0")
    SUPPORTED_VERSIONS: ClassVar = [tfds.core.Version("1.0.0")]
    content: ClassVar[dict] = {}
    keys: tuple[str, ...] = ("text",)

    def _info(self):
        features = {key: tfds.features.Text() for key in self.keys}
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features | {"number": np.int32}), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in self.content}

    def _generate_examples(self, split):
        for index, text in enumerate(self.content[split]):
            if isinstance(text, BaseException):
                raise text
            yield index, {**dict.fromkeys(self.keys, text), "number": index}


@pytest.fixture(autouse=True)
def words(tmp_path, monkeypatch):
    """Sets what the data set `mom_words` has."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))

    def have(keys=("text",), **content):
        monkeypatch.setattr(MomWords, "content", content)
        monkeypatch.setattr(MomWords, "keys", keys)

    have(train=["a", "b"])
    return have


def quiet(line: str) -> None:
    pass


def error(call, *arguments) -> str:
    with pytest.raises(ConfigError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_split_for_validation_gives_the_sides(words):
    words(train=["größer 雪", "b", ""], validation=["v\r\nw"], test=["t"])
    download_tfds("tfds:mom_words", quiet)
    source = open_tfds("tfds:mom_words")
    assert [(part.name, part.size, part.side) for part in source.parts] == [
        ("train[0:3]", 3, "train"),
        ("validation[0:1]", 1, "validation"),
    ]
    assert list(source.documents()) == [
        Document("train/0", "größer 雪", position=1),
        Document("train/1", "b", position=2),
        Document("train/2", "", position=3),
        Document("validation/0", "v\r\nw", position=1),
    ]
    for split in source.facts["splits"].values():
        [[name, size, _]] = split.pop("files")
        assert name.startswith("mom_words-")
        assert size > 0
    assert source.facts == {
        "source": "tfds:mom_words",
        "dataset": "mom_words/1.2.0",
        "feature": "text",
        "splits": {
            "train": {"examples": 3, "shard_lengths": [3]},
            "validation": {"examples": 1, "shard_lengths": [1]},
        },
    }
    assert json.loads(json.dumps(source.facts)) == source.facts


def test_what_is_prepared_anew_is_another_source(words, tmp_path):
    facts = []
    for text in ("hello", "world"):
        words(train=[text])
        download_tfds("tfds:mom_words", quiet)
        facts.append(open_tfds("tfds:mom_words").facts)
        shutil.rmtree(tmp_path / "tfds")
    assert facts[0] != facts[1]


def test_without_one_the_sides_are_open(words):
    words(train=["a"], test=["t"])
    download_tfds("tfds:mom_words", quiet)
    (part,) = open_tfds("tfds:mom_words").parts
    assert part.side is None
    assert [document.text for document in part.read()] == ["a"]


def test_parts_are_short_and_start_anywhere(words, monkeypatch):
    monkeypatch.setattr(module, "EXAMPLES_PER_PART", 10)
    monkeypatch.setattr(module, "_BATCH", 4)
    words(train=[f"text {index}" for index in range(25)])
    download_tfds("tfds:mom_words", quiet)
    source = open_tfds("tfds:mom_words")
    assert [(part.name, part.size) for part in source.parts] == [
        ("train[0:10]", 10),
        ("train[10:20]", 10),
        ("train[20:25]", 5),
    ]
    for part, start in zip(source.parts, itertools.count(0, 10), strict=False):
        expected = [Document(f"train/{start + i}", f"text {start + i}", position=i + 1) for i in range(part.size)]
        assert list(part.read()) == expected == list(part.read())
    # Processes can hand parts to each other.
    assert list(pickle.loads(pickle.dumps(source.parts[2])).read()) == list(source.parts[2].read())


def test_a_part_has_at_most_ten_thousand_examples(words):
    words(train=["x"] * 20_001)
    download_tfds("tfds:mom_words", quiet)
    assert [part.size for part in open_tfds("tfds:mom_words").parts] == [10_000, 10_000, 1]


def test_the_feature_is_chosen(words):
    words(keys=("title", "body"), train=["a"])
    download_tfds("tfds:mom_words#body", quiet)
    assert open_tfds("tfds:mom_words#body").facts["feature"] == "body"
    message = error(open_tfds, "tfds:mom_words")
    assert message.endswith("has several text features; choose one: tfds:mom_words#title or tfds:mom_words#body")
    assert error(open_tfds, "tfds:mom_words#bodi").endswith("no text feature 'bodi'; did you mean 'body'?")
    assert "no text feature 'number'" in error(open_tfds, "tfds:mom_words#number")


@pytest.mark.parametrize(("keys", "chosen"), [(("other", "text"), "text"), (("other",), "other")])
def test_the_feature_that_is_meant(words, keys, chosen):
    words(keys=keys, train=["a"])
    download_tfds("tfds:mom_words", quiet)
    assert open_tfds("tfds:mom_words").facts["feature"] == chosen


def test_no_text_and_no_training_split(words):
    words(keys=(), train=["a"])
    assert error(download_tfds, "tfds:mom_words", quiet).endswith("has no text feature, only number")


def test_no_training_split(words):
    words(validation=["a"], test=["b"])
    download_tfds("tfds:mom_words", quiet)
    assert error(open_tfds, "tfds:mom_words").endswith("has no split 'train', only validation, test")


def test_versions(words):
    download_tfds("tfds:mom_words:1.2.0", quiet)
    assert open_tfds("tfds:mom_words:1.*.*").facts["dataset"] == "mom_words/1.2.0"
    assert "is not prepared in" in error(open_tfds, "tfds:mom_words:1.0.0")
    assert "cannot be loaded at version 3.0.0, only: 1.2.0, 1.0.0" in error(open_tfds, "tfds:mom_words:3.0.0")


def test_a_data_set_of_which_only_the_files_are_there(words, tmp_path):
    download_tfds("tfds:mom_words", quiet)
    found = tmp_path / "tfds" / "mom_words" / "1.2.0"
    target = tmp_path / "tfds" / "mom_orphan" / "1.2.0"
    target.mkdir(parents=True)
    for path in found.iterdir():
        text = path.read_bytes()
        if path.suffix == ".json":
            text = text.replace(b"mom_words", b"mom_orphan")
        (target / path.name.replace("mom_words", "mom_orphan")).write_bytes(text)
    assert [document.text for document in open_tfds("tfds:mom_orphan").documents()] == ["a", "b"]


def test_not_prepared(tmp_path):
    for source in ("tfds:openwebtext", "tfds:xsum", "tfds:glue/sst2", "tfds:mom_words"):
        message = error(open_tfds, f"{source}#sentence")
        expected = f"is not prepared in {tmp_path / 'tfds'}; run: python -m train.prepare {source}"
        assert message == f"data.source='{source}#sentence': {expected}"
    assert not (tmp_path / "tfds").exists()


@pytest.mark.parametrize("call", [open_tfds, lambda source: download_tfds(source, quiet)])
@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("tfds:openwebtxt", "there is no data set 'openwebtxt'; did you mean 'openwebtext'?"),
        ("tfds:xsun", "there is no data set 'xsun'; did you mean 'xsum'"),
        ("tfds:qqqqqqqq", "there is no data set 'qqqqqqqq'; see tensorflow.org/datasets/catalog"),
        ("tfds:glue/sst3", "unknown configuration; did you mean 'sst2'?"),
        ("tfds:openwebtext/plain", "openwebtext has no configurations"),
        ("tfds:", "must be tfds:NAME"),
        ("tfds:glue/sst2/a=1", "must be tfds:NAME"),
        ("tfds:huggingface:imdb", "must be tfds:NAME"),
    ],
)
def test_a_bad_source_is_one_line_with_the_field(call, source, message):
    found = error(call, source)
    assert found.startswith(f"data.source={source!r}: ")
    assert message in found


def test_the_folder_is_read_from_the_environment_at_each_call(monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", "~/elsewhere")
    assert data_dir() == Path.home() / "elsewhere"
    monkeypatch.delenv("TFDS_DATA_DIR")
    assert data_dir() == Path.home() / "tensorflow_datasets"


def test_a_second_prepare_does_nothing(words, tmp_path):
    lines: list[str] = []
    download_tfds("tfds:mom_words", lines.append)
    assert "downloading and preparing mom_words/1.2.0" in lines[0]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "tfds").rglob("*")}
    lines.clear()
    words(train=["changed"])
    download_tfds("tfds:mom_words", lines.append)
    assert not lines
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "tfds").rglob("*")} == before


def test_what_was_said_goes_to_say_alone(capfd):
    download_tfds("tfds:mom_words", quiet)
    assert capfd.readouterr().out == ""


def test_another_file_format(words, tmp_path):
    download_tfds("tfds:mom_words", quiet)
    folder = tmp_path / "tfds" / "mom_words" / "1.2.0"
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    expected = f"is prepared in {folder} as tfrecord, not array_record; delete that folder and run: python -m"
    assert expected in error(open_tfds, "tfds:mom_words")
    assert expected in error(download_tfds, "tfds:mom_words", quiet)


@pytest.mark.parametrize("damage", ["cut", "cut between blocks", "empty", "gone", "changed"])
def test_a_damaged_file_is_told(words, tmp_path, damage):
    words(train=[f"{index}" * 1000 for index in range(300)])
    download_tfds("tfds:mom_words", quiet)
    (path,) = (tmp_path / "tfds" / "mom_words" / "1.2.0").glob("*.array_record-*")
    content = bytearray(path.read_bytes())
    content[200:260] = bytes(60)
    damaged = {"cut": content[:100_000], "cut between blocks": content[: 1 << 16], "changed": content}
    path.write_bytes(damaged.get(damage, b""))
    if damage == "gone":
        path.unlink()
    message = error(lambda: list(open_tfds("tfds:mom_words").documents()))
    assert message.startswith(f"data.source='tfds:mom_words': a file of 'train' in {path.parent} is missing or damaged")
    assert message.endswith("delete that folder and run: python -m train.prepare tfds:mom_words")


def test_a_damaged_description_is_told(tmp_path):
    download_tfds("tfds:mom_words", quiet)
    (tmp_path / "tfds" / "mom_words" / "1.2.0" / "dataset_info.json").write_text('{"name": ')
    assert "dataset_info.json in" in error(open_tfds, "tfds:mom_words")


def test_text_that_is_not_utf8(words):
    words(train=["good", b"ab\xff"])
    download_tfds("tfds:mom_words", quiet)
    documents = open_tfds("tfds:mom_words").documents()
    assert next(documents).text == "good"
    assert "'text' of example 1 of 'train' is not UTF-8 (byte 2) (data.on_bad=" in error(list, documents)
    left = list(open_tfds("tfds:mom_words").with_on_bad("skip").documents())
    assert [document.text for document in left] == ["good"]


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "there is no space left in"),
        (RuntimeError("write() failed: No space left on device; writing x"), "there is no space left in"),
        (TimeoutError("timed out"), "could not download timed out (TimeoutError); finished downloads are kept"),
        (ModuleNotFoundError("No module named 'apache_beam'"), "not installed to prepare it (No module named 'apache"),
    ],
)
def test_what_stops_preparing_leaves_nothing(words, tmp_path, problem, message):
    words(train=["a", problem])
    assert message in error(download_tfds, "tfds:mom_words", quiet)
    assert not list((tmp_path / "tfds" / "mom_words").iterdir())


def test_an_interrupt_leaves_nothing(words, tmp_path):
    words(train=["a", KeyboardInterrupt()])
    with pytest.raises(KeyboardInterrupt):
        download_tfds("tfds:mom_words", quiet)
    assert not list((tmp_path / "tfds" / "mom_words").iterdir())
    words(train=["a", "b"])
    download_tfds("tfds:mom_words", quiet)
    assert len(list(open_tfds("tfds:mom_words").documents())) == 2


def test_what_a_killed_run_left_is_told(tmp_path):
    leftover = tmp_path / "tfds" / "mom_words" / "incomplete.ABCDEF_1.2.0"
    leftover.mkdir(parents=True)
    lines: list[str] = []
    download_tfds("tfds:mom_words", lines.append)
    assert lines[0].startswith(f"{leftover} is half-prepared")
    assert leftover.exists()


def test_a_folder_that_is_no_data_set(tmp_path):
    folder = tmp_path / "tfds" / "mom_words" / "1.2.0"
    folder.mkdir(parents=True)
    assert f"{folder} is not a whole data set; delete it" in error(download_tfds, "tfds:mom_words", quiet)


class Folder(http.server.SimpleHTTPRequestHandler):
    """Serves a folder and notes what was asked for."""

    asked: ClassVar[list[str]] = []

    def log_message(self, *arguments):
        self.asked.append(self.path)


def test_no_network_and_then_one(tmp_path, monkeypatch):
    """Through TFDS's own downloads: what was finished is not downloaded again."""
    monkeypatch.setattr(downloader, "MAX_RETRIES", 0)
    served = tmp_path / "served"
    served.mkdir()
    for name in ("one", "two"):
        (served / f"{name}.txt").write_text(f"text {name}")
        with tarfile.open(served / f"{name}_data.xz", "w:xz") as archive:
            archive.add(served / f"{name}.txt", f"{name}.txt")
        with tarfile.open(served / f"{name}.tar", "w") as subset:
            subset.add(served / f"{name}_data.xz", f"{name}_data.xz")
    with socket.create_server(("127.0.0.1", 0)) as closed:
        nowhere = f"http://127.0.0.1:{closed.getsockname()[1]}"
    handler = type("Handler", (Folder,), {"asked": []})
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), lambda *arguments: handler(*arguments, directory=str(served))
    )
    here = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        # One after the other, so that the first is finished when the second fails.
        monkeypatch.setattr(BUILDERS["openwebtext"], "MAX_SIMULTANEOUS_DOWNLOADS", 1)
        monkeypatch.setattr(openwebtext, "URLS", (f"{here}/one.tar", f"{nowhere}/two.tar"))
        message = error(download_tfds, "tfds:openwebtext", quiet)
        assert f"could not download {nowhere}/two.tar (ConnectionError); finished downloads are kept" in message
        assert not list((tmp_path / "tfds" / "openwebtext").iterdir())

        monkeypatch.setattr(openwebtext, "URLS", (f"{here}/one.tar", f"{here}/no-such.tar"))
        assert f"Failed to get url {here}/no-such.tar. HTTP code: 404" in error(
            download_tfds, "tfds:openwebtext", quiet
        )

        monkeypatch.setattr(openwebtext, "URLS", (f"{here}/one.tar", f"{here}/two.tar"))
        download_tfds("tfds:openwebtext", quiet)
    finally:
        server.shutdown()
        server.server_close()
    assert handler.asked.count("/one.tar") == handler.asked.count("/two.tar") == 1
    assert [document.text for document in open_tfds("tfds:openwebtext").documents()] == ["text one", "text two"]
