"""Text files: which, in which order, in which formats, and what is wrong with them in one line."""

import gzip
import json
import lzma
import os

import pytest

from mom_jax.fields import ConfigError
from train.data.sources import files as sources_files
from train.data.sources import text_files
from train.data.sources.kinds import open_source
from train.data.sources.text_files import zstd


def write(root, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def documents(pattern) -> list[tuple[str, str]]:
    """(name, text) of all documents, with the pieces of long ones put together."""
    found: list[tuple[str, str]] = []
    text = ""
    for document in open_source(f"text:{pattern}").documents():
        text += document.text
        if document.last:
            found.append((document.name, text))
            text = ""
    assert not text
    return found


def test_text_files_by_recursive_glob(tmp_path):
    write(tmp_path, {"b.txt": b"two\r\n", "a/deep/c.txt": "é\0".encode(), "a/d.txt": b"", "a/skip.md": b"no"})
    assert documents(f"{tmp_path}/**/*.txt") == [("a/d.txt", ""), ("a/deep/c.txt", "é\0"), ("b.txt", "two\r\n")]


def test_names_are_relative_to_the_fixed_part_of_the_glob(tmp_path, monkeypatch):
    write(tmp_path, {"x/one/a.txt": b"1", "x/two/b.txt": b"2", "x/two/folder.txt/c.md": b"3"})
    names = lambda pattern: [name for name, _ in documents(pattern)]  # noqa: E731
    assert names(f"{tmp_path}/x/*/*.txt") == ["one/a.txt", "two/b.txt"]
    assert names(f"{tmp_path}/x/one/a.txt") == ["a.txt"]
    monkeypatch.chdir(tmp_path / "x")
    assert names("**/*.txt") == ["one/a.txt", "two/b.txt"]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert names("~/x/*/*.txt") == ["one/a.txt", "two/b.txt"]


COMPRESSIONS = {".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstd.compress}


@pytest.mark.parametrize("ending", COMPRESSIONS)
def test_compressed_files(tmp_path, ending):
    lines = b'{"text": "one"}\n{"id": 7, "text": "tw\\u00f6\\n"}\n'
    compress = COMPRESSIONS[ending]
    write(
        tmp_path, {f"a.txt{ending}": compress("ä text".encode()) + compress(b"s"), f"b.jsonl{ending}": compress(lines)}
    )
    expected = [(f"a.txt{ending}", "ä texts"), (f"b.jsonl{ending}:1", "one"), (f"b.jsonl{ending}:2", "twö\n")]
    assert documents(f"{tmp_path}/*") == expected


def test_a_line_of_jsonl_is_a_document(tmp_path):
    records = [{"text": "line one\nand two"}, {"text": ""}, {"text": "\U0001f600", "meta": {"text": "no"}}]
    content = "\n\n".join(json.dumps(record) for record in records)  # with empty lines, and no end of the last
    write(tmp_path, {"a.jsonl": content.encode(), "b.NDJSON": json.dumps(records[0], ensure_ascii=False).encode()})
    assert documents(f"{tmp_path}/*") == [
        ("a.jsonl:1", "line one\nand two"),
        ("a.jsonl:3", ""),
        ("a.jsonl:5", "\U0001f600"),
        ("b.NDJSON:1", "line one\nand two"),
    ]


def test_a_long_file_comes_in_pieces(tmp_path, monkeypatch):
    """Characters of several bytes lie across the blocks that are read."""
    monkeypatch.setattr(text_files, "_PIECE", 1000)
    text = "".join(f"wörd{i} " for i in range(5000))
    write(tmp_path, {"a.txt": text.encode(), "b.txt": b"short"})
    source = open_source(f"text:{tmp_path}/*.txt")
    pieces = list(source.documents())
    assert max(len(piece.text) for piece in pieces) <= 2000 < len(text)
    assert "".join(piece.text for piece in pieces[:-1]) == text
    assert [piece.last for piece in pieces[-3:]] == [False, True, True]
    [part] = source.parts
    positions = [piece.position for piece in pieces]
    assert positions == sorted(positions)
    assert positions[-1] == part.size


def test_many_files_are_several_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "PART", 25)
    write(tmp_path, {f"{i}.txt": b"0123456789" for i in range(8)})
    parts = open_source(f"text:{tmp_path}/*.txt").parts
    assert [(part.name, part.size) for part in parts] == [
        ("0.txt to 2.txt", 30),
        ("3.txt to 5.txt", 30),
        ("6.txt to 7.txt", 20),
    ]
    assert [document.name for document in parts[1].read()] == ["3.txt", "4.txt", "5.txt"]


def test_the_end_of_a_single_file_is_held_out(tmp_path):
    lines = [f"line {i} ä\n" for i in range(1000)]
    write(tmp_path, {"all.txt": "".join(lines).encode()})
    train, validation = open_source(f"text:{tmp_path}/all.txt", 0.1).parts
    assert (train.side, validation.side) == ("train", "validation")
    [(_, first, *_), (_, rest, *_)] = [*train.read(), *validation.read()]
    assert first + rest == "".join(lines)
    assert first.endswith("\n")
    assert 95 <= rest.count("\n") <= 100


@pytest.mark.parametrize(("text", "parts"), [("word " * 100, 2), ("x" * 99, 1)])
def test_a_single_file_without_lines_is_divided_at_a_word(tmp_path, text, parts):
    write(tmp_path, {"all.txt": text.encode()})
    found = [document.text for document in open_source(f"text:{tmp_path}/all.txt", 0.1).documents()]
    assert "".join(found) == text
    assert len(found) == parts
    assert parts == 1 or 40 <= len(found[1]) <= 55


def test_the_fingerprint_follows_names_and_contents(tmp_path):
    pattern = f"text:{tmp_path}/*.txt"
    seen = set()
    for files in ({"a.txt": b"bc", "d.txt": b""}, {"a.txt": b"b", "d.txt": b"c"}, {"d.txt": b"C"}, {"e.txt": b"C"}):
        write(tmp_path, files)
        seen.add(open_source(pattern).facts["sha256"])
    (tmp_path / "d.txt").rename(tmp_path / "f.txt")
    seen.add(open_source(pattern).facts["sha256"])
    assert len(seen) == 5


def test_the_fingerprint_of_many_bytes_follows_sizes_and_times(tmp_path, monkeypatch):
    monkeypatch.setattr(sources_files, "_HASHED", 3)
    path = tmp_path / "a.txt"
    seen = set()
    for content, time in ((b"abcd", 1), (b"abcde", 1), (b"abcde", 2)):
        path.write_bytes(content)
        os.utime(path, ns=(time, time))
        seen.add(open_source(f"text:{path}").facts["sha256"])
    assert len(seen) == 3
    path.write_bytes(b"edcba")
    os.utime(path, ns=(2, 2))
    assert open_source(f"text:{path}").facts["sha256"] in seen


def test_the_fingerprint_tells_a_name_from_a_content(tmp_path):
    write(tmp_path / "one", {"a.txt": b"b.txtx"})
    write(tmp_path / "two", {"a.txt": b"", "b.txt": b"x"})
    one, two = (open_source(f"text:{tmp_path}/{folder}/*.txt").facts for folder in ("one", "two"))
    assert one["sha256"] != two["sha256"]


def test_the_fingerprint_does_not_depend_on_where_the_files_lie(tmp_path):
    for folder in ("here", "there"):
        write(tmp_path / folder, {"a/b.txt": b"text"})
    here, there = (open_source(f"text:{tmp_path}/{folder}/**/*.txt").facts for folder in ("here", "there"))
    assert here["sha256"] == there["sha256"]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", b"ab\xff", "a.txt is not UTF-8 (byte 2)"),
        ("a.txt", b"x" * 3000 + b"\xe2\x82" + b"y" * 3000, "a.txt is not UTF-8 (byte 3000)"),
        ("a.txt", "é".encode()[:1], "a.txt is not UTF-8 (byte 0)"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}', "a.jsonl, line 2 is not UTF-8 (byte 10 of it)"),
        ("a.jsonl", b'{"text": "a"}\n{"text": ', "a.jsonl, line 2: must be a JSON object with a text"),
        ("a.jsonl", b"[1]", "a.jsonl, line 1: must be a JSON object with a text"),
        ("a.jsonl", b'{"body": "a"}', "a.jsonl, line 1: must be a JSON object with a text"),
        ("a.jsonl", b'{"text": 3}', "a.jsonl, line 1: must be a JSON object with a text"),
        ("a.jsonl", b'{"text": "\\ud800"}', "a.jsonl, line 1: must be a JSON object with a text"),
        ("a.txt.gz", gzip.compress(bytes(range(100)), mtime=0)[:-20], "a.txt.gz is damaged or cut off"),
        ("a.jsonl", b"[" * 100_000, "a.jsonl, line 1: must be a JSON object with a text"),
        ("a.txt.gz", b"no gzip", "a.txt.gz is damaged or cut off"),
        ("a.txt.gz", b"", "a.txt.gz is empty, which no compressed file is"),
        ("a.jsonl.gz", b"", "a.jsonl.gz is empty, which no compressed file is"),
        ("a.txt.xz", lzma.compress(bytes(range(100)))[:-20], "a.txt.xz is damaged or cut off"),
        ("a.txt.xz", b"no xz", "a.txt.xz is damaged or cut off"),
        ("a.txt.zst", zstd.compress(bytes(range(100)))[:-20], "a.txt.zst is damaged or cut off"),
        ("a.jsonl.zst", b"no zstd", "a.jsonl.zst is damaged or cut off"),
    ],
)
def test_a_bad_file_is_named_in_one_line(tmp_path, monkeypatch, name, content, expected):
    monkeypatch.setattr(text_files, "_PIECE", 1024)
    write(tmp_path, {name: content, "z.txt": b"good"})
    with pytest.raises(ConfigError) as error:
        documents(f"{tmp_path}/*")
    assert str(error.value).startswith(f"data.source='text:{tmp_path}/*': {tmp_path}/{expected}")
    assert "\n" not in str(error.value)


def test_a_link_to_what_is_not_there(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.txt").symlink_to(tmp_path / "disk" / "b.txt")
    (tmp_path / "c").symlink_to(tmp_path / "disk")
    with pytest.raises(ConfigError, match=r"data\.source=.*b\.txt' is a link to what is not there"):
        open_source(f"text:{tmp_path}/*.txt")
    (tmp_path / "b.txt").unlink()
    assert open_source(f"text:{tmp_path}/*.txt").facts["files"] == 1


def test_a_file_that_cannot_be_read(tmp_path):
    write(tmp_path, {"a.txt": b"a", "b.txt": b"b"})
    source = open_source(f"text:{tmp_path}/*.txt")
    (tmp_path / "b.txt").unlink()
    with pytest.raises(ConfigError, match=r"cannot read .*b\.txt \(No such file"):
        list(source.documents())
