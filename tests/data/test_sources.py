"""Sources: which files, in which order, and what identifies them."""

import json
import platform
from pathlib import Path

import pytest

from mom_jax.fields import ConfigError
from train.data.sources import Document, check_split, is_held_out, open_source


def write(root: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def test_the_standard_library_is_there_in_order():
    source = open_source("builtin:stdlib")
    documents = list(source.documents())
    names = [document.name for document in documents]
    assert names == sorted(names) == source.names
    assert len(set(names)) == len(names) > 500
    assert {"argparse.py", "json/decoder.py", "asyncio/tasks.py"} <= set(names)
    assert 8e6 < sum(len(document.text.encode()) for document in documents) < 20e6
    argparse = next(document for document in documents if document.name == "argparse.py")
    assert "class ArgumentParser" in argparse.text


def test_neither_tests_nor_installed_packages_belong_to_the_standard_library():
    for name in open_source("builtin:stdlib").names:
        assert not {"test", "tests", "idle_test", "site-packages", "dist-packages"} & set(name.split("/")), name
        assert not name.startswith(("_sysconfigdata", "config-")), name


def test_the_standard_librarys_fingerprint():
    fingerprint = open_source("builtin:stdlib").fingerprint()
    assert fingerprint["source"] == "builtin:stdlib"
    assert fingerprint["python"] == platform.python_version()
    assert fingerprint["files"] == len(open_source("builtin:stdlib").names)
    assert len(fingerprint["sha256"]) == 64
    assert json.loads(json.dumps(fingerprint)) == fingerprint == open_source("builtin:stdlib").fingerprint()


def test_text_files_by_recursive_glob(tmp_path):
    write(tmp_path, {"b.txt": b"two\r\n", "a/deep/c.txt": "é\0".encode(), "a/d.txt": b"", "a/skip.md": b"no"})
    source = open_source(f"text:{tmp_path}/**/*.txt")
    assert list(source.documents()) == [
        Document("a/d.txt", ""),
        Document("a/deep/c.txt", "é\0"),
        Document("b.txt", "two\r\n"),
    ]


def test_names_are_relative_to_the_fixed_part_of_the_glob(tmp_path, monkeypatch):
    write(tmp_path, {"x/one/a.txt": b"1", "x/two/b.txt": b"2", "x/two/folder.txt/c.md": b"3"})
    assert open_source(f"text:{tmp_path}/x/*/*.txt").names == ["one/a.txt", "two/b.txt"]
    assert open_source(f"text:{tmp_path}/x/one/a.txt").names == ["a.txt"]
    monkeypatch.chdir(tmp_path / "x")
    assert open_source("text:**/*.txt").names == ["one/a.txt", "two/b.txt"]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_source("text:~/x/*/*.txt").names == ["one/a.txt", "two/b.txt"]


def test_the_fingerprint_follows_names_and_contents(tmp_path):
    pattern = f"text:{tmp_path}/*.txt"
    seen = set()
    for files in ({"a.txt": b"bc", "d.txt": b""}, {"a.txt": b"b", "d.txt": b"c"}, {"d.txt": b"C"}, {"e.txt": b"C"}):
        write(tmp_path, files)
        seen.add(open_source(pattern).fingerprint()["sha256"])
    (tmp_path / "d.txt").rename(tmp_path / "f.txt")
    seen.add(open_source(pattern).fingerprint()["sha256"])
    assert len(seen) == 5


def test_the_fingerprint_tells_a_name_from_a_content(tmp_path):
    write(tmp_path / "one", {"a.txt": b"b.txtx"})
    write(tmp_path / "two", {"a.txt": b"", "b.txt": b"x"})
    one, two = (open_source(f"text:{tmp_path}/{folder}/*.txt").fingerprint() for folder in ("one", "two"))
    assert one["sha256"] != two["sha256"]


def test_the_fingerprint_does_not_depend_on_where_the_files_lie(tmp_path):
    for folder in ("here", "there"):
        write(tmp_path / folder, {"a/b.txt": b"text"})
    here, there = (open_source(f"text:{tmp_path}/{folder}/**/*.txt").fingerprint() for folder in ("here", "there"))
    assert here["sha256"] == there["sha256"]


def test_a_file_that_is_not_utf8_is_named(tmp_path):
    write(tmp_path, {"a.txt": b"good", "bad.txt": b"ab\xff"})
    with pytest.raises(ConfigError, match=r"data\.source=.*bad\.txt is not UTF-8 \(byte 2\)"):
        list(open_source(f"text:{tmp_path}/*.txt").documents())


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("builtin:stdlb", "did you mean 'builtin:stdlib'"),
        ("stdlib", "did you mean 'builtin:stdlib'"),
        ("builtn:stdlib", "did you mean 'builtin'"),
        ("texts:*.txt", "did you mean 'text'"),
        ("parquet:somewhere", "known names: builtin, text"),
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


def test_both_sides_need_a_document():
    held_out = next(name for name in map(str, range(1000)) if is_held_out(name, 0.1))
    trained = next(name for name in map(str, range(1000)) if not is_held_out(name, 0.1))
    check_split([held_out, trained], 0.1)
    with pytest.raises(ConfigError, match=r"data\.validation_fraction=0\.1: holds out none of the 1 documents"):
        check_split([trained], 0.1)
    with pytest.raises(ConfigError, match=r"data\.validation_fraction=0\.1: leaves none of the 2 documents"):
        check_split([held_out, held_out], 0.1)
