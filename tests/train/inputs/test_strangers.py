"""Strangers' files are data: what they name, link to and claim leads nowhere else."""

import dataclasses
import errno
import fcntl
import gzip
import io
import json
import os
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import tiny
from safetensors import SafetensorError

from mom_jax.config import ChoiceConfig, ModelConfig
from mom_jax.fields import ConfigError
from train.checkpoints.locate import Found, find, tell_data
from train.checkpoints.run_config import read_config, to_json
from train.checkpoints.weights import open_weights
from train.config import Config, DataConfig
from train.data.prepared import prepare
from train.data.sources import text_files
from train.data.sources.builders import extraction
from train.data.sources.text_files import open_text
from train.data.sources.tfds import open_tfds
from train.files import locked, parse_json, read_bytes, with_checksum, within, write_whole, writing
from train.files.writing import to_json as json_file
from train.reporting.metrics import MetricsLog
from train.training.run import claimed


@pytest.fixture
def precious(tmp_path):
    file = tmp_path / "precious"
    file.write_text("precious")
    yield file
    assert file.read_text() == "precious"


# Links, locks and outputs.


def test_links_are_not_followed(tmp_path, precious):
    config = dataclasses.replace(Config(), run=str(tmp_path / "run"))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(precious)
    with pytest.raises(ConfigError, match=r"\.lock' must be a plain file"), claimed(config):
        pass
    (tmp_path / "run" / "metrics.jsonl").symlink_to(precious)
    with (
        pytest.raises(ConfigError, match=r"metrics\.jsonl' must be a plain file"),
        MetricsLog(tmp_path / "run") as log,
    ):
        log.write({"step": 1})
    # Nor are those in place of the folders into which training writes, and where it deletes.
    (tmp_path / "run" / ".lock").unlink()
    (tmp_path / "run" / "checkpoints").mkdir()
    (tmp_path / "elsewhere" / "1").mkdir(parents=True)
    for part in ("checkpoints/pretrain", "numbers", "routes", "tensorboard", "profile", "checkpoints"):
        place = tmp_path / "run" / part
        if place.is_dir():
            place.rmdir()
        place.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(ConfigError, match=f"{part}' must be a folder of its own, not a link"), claimed(config):
            pass
        place.unlink()
    assert list((tmp_path / "elsewhere").iterdir()) == [tmp_path / "elsewhere" / "1"]
    # A file is written beside its place first, under a name that can be known.
    (tmp_path / f".out.{os.getpid()}.partial").symlink_to(precious)
    write_whole(tmp_path / "out", b"new")
    assert (tmp_path / "out").read_bytes() == b"new"


def test_what_is_no_regular_file_is_not_read_or_locked(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name, why in (("pipe", "no regular file"), (".", "a folder"), ("none", "No such file")):
        with pytest.raises(ConfigError, match=f"file: cannot be read .{why}"):
            read_bytes(tmp_path / name, "file")
    with pytest.raises(ConfigError, match="plain file"), locked(tmp_path / "pipe", "run", wait=False):
        pass
    (tmp_path / "large").write_bytes(bytes(11))
    with pytest.raises(ConfigError, match="has 11 bytes, more than 10"):
        read_bytes(tmp_path / "large", "file", 10)


def test_locks(tmp_path, monkeypatch):
    lock = tmp_path / "lock"
    with locked(lock, "run", wait=False) as first, locked(lock, "run", wait=False) as second:
        assert (first, second) == (True, False)
    with pytest.raises(KeyError), locked(lock, "run", wait=True, temporary=True):
        raise KeyError
    assert not lock.exists()

    def no_locks(*arguments):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(ConfigError, match="the file system has no locks"), locked(lock, "run", wait=False):
        pass


def test_a_lock_that_was_removed_meanwhile_is_made_again(tmp_path, monkeypatch):
    lock, own = tmp_path / "lock", fcntl.flock

    def removed(descriptor, how):
        monkeypatch.setattr(fcntl, "flock", own)
        lock.unlink()  # by the process that held it, while this one waited
        own(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", removed)
    with locked(lock, "run", wait=True) as held:
        assert held
        assert lock.exists()


def test_a_full_disk_is_one_line_whoever_says_it(tmp_path):
    for error in (
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        ValueError('RESOURCE_EXHAUSTED: Error writing "a" in OCDBT database: No space left on device'),
    ):
        with pytest.raises(ConfigError, match=r"output='out': cannot be written .No space left on device.$"):  # noqa: SIM117
            with writing(Path("out")):
                raise error
    with pytest.raises(ValueError, match="another"), writing(Path("out")):
        raise ValueError("another")


# JSON.


def test_json_has_no_infinity_and_no_nan(tmp_path):
    prior = ((0.0, -float("inf")), (0.0, 0.0))
    side = ChoiceConfig(prior=prior)
    model = ModelConfig(num_attn_modules=1, num_ffn_modules=1, num_steps=2, ffn=ChoiceConfig(), attention=side)
    config = Config(model=dataclasses.replace(model, num_attn_modules=1, router=model.router))
    content = to_json(config)
    assert b"Infinity" not in content
    for text in (content, content.replace(b'"-inf"', b"-Infinity")):  # as earlier versions wrote it
        (tmp_path / "config.json").write_bytes(text)
        assert read_config(tmp_path, "run") == config
    with pytest.raises(ValueError, match="JSON"):
        json_file({"loss": float("nan")})
    for text in ("NaN", "[Infinity]", "-Infinity", "1e999", '{"a": 1, "a": 2}', '"\\ud800"', "[" * 65 + "]" * 65):
        with pytest.raises(ConfigError, match="file: cannot be read"):
            parse_json(text, "file")
    assert parse_json('{"a": [1, "\\ud83d\\ude00"]}', "file") == {"a": [1, "\U0001f600"]}


# Names in an index.


def test_a_cache_of_hugging_face_is_one_folder(tmp_path):
    store, folder = tmp_path / "models--x" / "blobs", tmp_path / "models--x" / "snapshots" / "y"
    store.mkdir(parents=True)
    folder.mkdir(parents=True)
    (store / "abc").write_bytes(b"")
    (folder / "a.safetensors").symlink_to("../../blobs/abc")
    assert within(folder, "a.safetensors", "index") == folder / "a.safetensors"
    (tmp_path / "outside").write_bytes(b"")
    (folder / "b.safetensors").symlink_to("../../../outside")
    with pytest.raises(ConfigError, match="a link that leads outside"):
        within(folder, "b.safetensors", "index")


@pytest.mark.slow
def test_a_tensor_of_more_numbers_than_the_file_has(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"a": torch.zeros(1).expand(10**9)}, tmp_path / "pytorch_model.bin")
    assert (tmp_path / "pytorch_model.bin").stat().st_size < 10_000
    with pytest.raises(ConfigError, match="'a' is no plain tensor"):
        open_weights(tmp_path, "input")
    torch.save({"a": Path("x")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="is no whole state dict of tensors only"):
        open_weights(tmp_path, "input")


# Data sets and archives.


def test_nothing_that_a_data_set_names_is_imported(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "stranger.py").write_text("raise SystemExit('imported')\n")
    folder = tmp_path / "words" / "1.0.0"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text(json.dumps({"name": "words", "version": "1.0.0"}))
    own = "tensorflow_datasets.core.features.features_dict.FeaturesDict"
    features = {"pythonClassName": own, "featuresDict": {"features": {"text": {"pythonClassName": "stranger.Text"}}}}
    (folder / "features.json").write_text(json.dumps(features))
    with pytest.raises(ConfigError, match=r"names the feature class 'stranger\.Text'.* is not imported"):
        open_tfds("tfds:words")
    assert "stranger" not in sys.modules


def a_tar(path, *members):
    with tarfile.open(path, "w:gz") as archive:
        for name, size, link in members:
            member = tarfile.TarInfo(name)
            member.size = 0 if link else size
            if link:
                member.type, member.linkname = tarfile.SYMTYPE, link
            archive.addfile(member, io.BytesIO(bytes(member.size)))


def test_archives_stay_in_their_folder_and_have_bounds(tmp_path, monkeypatch):
    monkeypatch.setattr(extraction, "ROOM", 10_000)
    for number, member in enumerate((("../out", 1, ""), ("link", 0, "/etc"), ("zeros", 10**7, ""))):
        a_tar(tmp_path / "a.tar.gz", ("good", 10, ""), member)
        with pytest.raises(tarfile.TarError):
            extraction._unpack(tmp_path / "a.tar.gz", "TAR_GZ", tmp_path / f"tar-{number}")
    for number, (name, size) in enumerate((("../out", 1), ("/out", 1), ("zeros", 10**7))):
        with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(name, bytes(size))
        with pytest.raises(zipfile.BadZipFile):
            extraction._unpack(tmp_path / "a.zip", "ZIP", tmp_path / f"zip-{number}")
    (tmp_path / "a.gz").write_bytes(gzip.compress(bytes(10**7)))
    with pytest.raises(gzip.BadGzipFile, match="200 times its size"):
        extraction._unpack(tmp_path / "a.gz", "GZIP", tmp_path / "gz")
    assert not (tmp_path / "out").exists()
    a_tar(tmp_path / "good.tar.gz", ("folder/good", 10, ""))
    extraction._unpack(tmp_path / "good.tar.gz", "TAR_GZ", tmp_path / "good")
    assert (tmp_path / "good" / "folder" / "good").stat().st_size == 10


def test_compressed_texts_have_bounds(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "_ROOM", 10_000)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"a" * 10**7))
    with pytest.raises(ConfigError, match="200 times its size: it is no text"):
        list(open_text(f"text:{tmp_path}/a.txt.gz", 0.1).documents())
    monkeypatch.setattr(text_files, "_LINE", 100)
    (tmp_path / "a.jsonl").write_text('{"text": "' + "a" * 200 + '"}\n')
    with pytest.raises(ConfigError, match="line 1: has more than 100 bytes"):
        list(open_text(f"text:{tmp_path}/a.jsonl", 0.1).documents())


def test_a_damaged_journal_begins_anew(tmp_path):
    data = tiny.config(tmp_path).data
    [cache] = prepare(data).train
    expected = cache.file.read_bytes()
    partial = cache.folder.with_name(f".{cache.folder.name}.partial")
    whole = {"tokens": 9, "documents": 1, "crc32": 0, "ends_crc32": 0}
    elsewhere = {"part": 0, "name": "x", "pieces": 1, "train": whole, "validation": whole}
    records = ({}, {"part": "x", "name": "x"}, {"part": -1, "name": "x"}, elsewhere)
    for text in ("", "{", "[]", *(json.dumps(with_checksum(record)) for record in records)):
        cache.folder.rename(partial)
        (partial / "journal.json").write_text(text)
        [cache] = prepare(data).train
        assert cache.file.read_bytes() == expected
        assert not partial.exists()


def test_a_checkpoint_s_arrays_are_those_of_its_configuration(tmp_path):
    """Without checksums, which a stranger can write as well."""
    run = tiny.store(tiny.config(tmp_path), "mom")
    file = run / "checkpoints" / "mom" / "6" / "meta" / "metadata"
    record = json.loads(file.read_text())
    for change, expected in (
        ({"d_model": 18}, r"its configuration has .* of shape \(.*\), which has the shape \(.*16"),
        ({"num_bottom": 1}, r"its configuration has bottom\.0\..* is missing"),
        ({"num_chunks": 9000}, "its configuration has .* parameters, its weights"),
        ({"d_model": 10**6}, "its configuration has .* parameters, its weights"),
    ):
        model = record["config"]["model"] | change
        file.write_text(json.dumps(record | {"config": record["config"] | {"model": model}}))
        file.parents[1].joinpath("manifest.json").unlink(missing_ok=True)
        found = find(run, field="checkpoint")
        for read in (found.arrays, found.params):
            with pytest.raises(ConfigError, match=expected):
                read(found.meta().model)
    file.write_text("[" * 100_000)
    with pytest.raises(ConfigError, match="6: the checkpoint cannot be read"):
        find(run, field="checkpoint").meta()


def test_a_stranger_s_unfinished_cache_leads_nowhere(tmp_path, precious):
    data = tiny.config(tmp_path).data
    [cache] = prepare(data).train
    expected, partial = cache.file.read_bytes(), cache.folder.with_name(f".{cache.folder.name}.partial")
    cache.folder.rename(partial)
    (partial / "train.bin").unlink()
    (partial / "train.bin").symlink_to(precious)
    (partial / "journal.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"train\.bin' must be a plain file"):
        prepare(data)
    partial.rename(tmp_path / "elsewhere")
    partial.symlink_to(tmp_path / "elsewhere")
    [cache] = prepare(data).train
    assert cache.file.read_bytes() == expected
    assert not cache.folder.is_symlink()
    assert (tmp_path / "elsewhere" / "train.bin").is_symlink()


def test_the_data_that_a_checkpoint_names_is_told():
    told: list[str] = []
    found = Found(Path("run"), Path("run/checkpoints/mom"), 6)
    tell_data(found, DataConfig(), told.append)
    assert told == []
    tell_data(found, DataConfig(source="text:/home/*", cache="/home"), told.append)
    assert told == ["run/checkpoints/mom/6 names the data: source='text:/home/*', cache='/home'"]
