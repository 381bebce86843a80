"""Sources: which kinds there are, what identifies them, and which documents are held out."""

import json
import platform

import pytest

from mom_jax.fields import ConfigError
from train.data.documents import is_held_out
from train.data.sources.kinds import open_source


def names(source: str) -> list[str]:
    return [document.name for document in open_source(source).documents()]


def test_the_standard_library_is_there_in_order():
    source = open_source("builtin:stdlib")
    documents = list(source.documents())
    names = [document.name for document in documents]
    assert names == sorted(names)
    assert len(set(names)) == len(names) > 500
    assert {"argparse.py", "json/decoder.py", "asyncio/tasks.py"} <= set(names)
    assert 8e6 < sum(len(document.text.encode()) for document in documents) < 20e6
    argparse = next(document for document in documents if document.name == "argparse.py")
    assert "class ArgumentParser" in argparse.text


def test_neither_tests_nor_installed_packages_belong_to_the_standard_library():
    for name in names("builtin:stdlib"):
        assert not {"test", "tests", "idle_test", "site-packages", "dist-packages"} & set(name.split("/")), name
        assert not name.startswith(("_sysconfigdata", "config-")), name


def test_the_standard_librarys_fingerprint():
    fingerprint = open_source("builtin:stdlib").facts
    assert fingerprint["source"] == "builtin:stdlib"
    assert fingerprint["python"] == platform.python_version()
    assert fingerprint["files"] == len(names("builtin:stdlib"))
    assert len(fingerprint["sha256"]) == 64
    assert json.loads(json.dumps(fingerprint)) == fingerprint == open_source("builtin:stdlib").facts


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("builtin:stdlb", "did you mean 'builtin:stdlib'"),
        ("stdlib", "did you mean 'builtin:stdlib'"),
        ("builtn:stdlib", "did you mean 'builtin'"),
        ("texts:*.txt", "did you mean 'text'"),
        ("parkay:somewhere", "did you mean 'parquet'|known names: bin, builtin, hf, mix, parquet, text, tfds"),
        ("text:", "no folder|no file"),
        ("text:/no/such/folder/*.txt", "no folder '/no/such/folder'"),
        ("text:no-such-file-*.txt", "no file matches"),
    ],
)
def test_a_bad_source_is_one_line_with_the_field(source, message):
    with pytest.raises(ConfigError, match=message) as error:
        open_source(source)
    assert str(error.value).startswith(f"data.source={source!r}: ")
    assert "\n" not in str(error.value)


def test_held_out_names_are_fixed_for_ever():
    # `sha256sum` of the names starts with 18b7cb09 and ffa0da5d.
    for name, start in {"a.txt": 0x18B7CB09, "b.txt": 0xFFA0DA5D}.items():
        assert is_held_out(name, (start + 1) / 2**32)
        assert not is_held_out(name, start / 2**32)


def test_the_held_out_share_is_near_the_fraction():
    held_out = sum(is_held_out(f"document {i}", 0.05) for i in range(20_000))
    assert 0.045 < held_out / 20_000 < 0.055
