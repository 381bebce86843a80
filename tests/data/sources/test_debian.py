"""Texts of Debian packages, from a small .deb to the files that a study reads."""

import gzip
import io
import json
import lzma
import re
import shutil
import tarfile

import pytest
from programs import call

from configs.studies.texts.domains import main
from mom_jax.fields import ConfigError
from train.data.sources import manual
from train.data.sources.debian import download, read_files
from train.data.sources.kinds import open_source
from train.data.sources.manual import plain_text

PAGE = """\
.TH PASSER 1
.SH NOM
passer \\- laisser passer ce qui est en ordre, et le reste aussi, aussi longtemps qu'il le faut et aussi loin qu'on peut
.SH DESCRIPTION
.PP
.ad b
Une phrase avec des \\fBmots gras\\fP et des « guillemets ».
.TS
l l.
un	deux
.TE
"""


def package(path, files, links=(), compress=lzma.compress, ending="xz"):
    """Writes a .deb whose members are (path, content) pairs."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name, text in files:
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text))
        for name, target in links:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            archive.addfile(member)
    members = [
        ("debian-binary", b"2.0\n"),
        ("control.tar.xz", b"odd"),
        (f"data.tar.{ending}", compress(content.getvalue())),
    ]
    with path.open("wb") as file:
        file.write(b"!<arch>\n")
        for name, data in members:
            file.write(
                f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode() + data + b"\n" * (len(data) % 2)
            )
    return path


def test_files_of_a_package_are_read_where_they_match(tmp_path):
    files = [
        ("./usr/share/doc/a.txt", b"plain"),
        ("./usr/share/doc/b.txt.gz", gzip.compress(b"packed")),
        ("../../outside.txt", b"elsewhere"),
        ("/etc/absolute.txt", b"elsewhere"),
        ("./usr/share/doc/c.html", b"no"),
    ]
    wanted = re.compile(r"usr/share/doc/.*\.txt(\.gz)?")
    expected = {"usr/share/doc/a.txt": b"plain", "usr/share/doc/b.txt.gz": b"packed"}
    links = [("./usr/share/doc/link.txt", "/etc/passwd")]
    for ending, compress in (("xz", lzma.compress), ("gz", gzip.compress)):
        assert read_files(package(tmp_path / "a.deb", files, links, compress, ending), wanted) == expected
    assert [path.name for path in tmp_path.iterdir()] == ["a.deb"]


def test_what_is_no_package(tmp_path, monkeypatch):
    every = re.compile(".*")
    whole = package(tmp_path / "whole.deb", [("./a", bytes(range(256)) * 20)]).read_bytes()
    damaged = tmp_path / "damaged.deb"
    for content, problem in (
        (b"", "is no Debian package"),
        (b"PK\3\4" + whole, "is no Debian package"),
        (whole[:100], "is no Debian package"),
        (whole[:-30], "is damaged (it is cut off)"),
        (whole[:-60] + b"\0" * 60, "is damaged"),
    ):
        damaged.write_bytes(content)
        with pytest.raises(ConfigError, match=re.escape(f"deb={str(damaged)!r}: {problem}")):
            read_files(damaged, every)
    bomb = package(tmp_path / "bomb.deb", [("./zeros.gz", gzip.compress(bytes(2**24 + 1)))])
    with pytest.raises(ConfigError, match=r"zeros.gz has more than 16,777,216 bytes"):
        read_files(bomb, every)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="there is no apt-get here to download it; give the file itself with --deb"):
        download("manpages-fr", tmp_path)


def test_apt_gets_the_package_or_says_why_not(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    apt = tmp_path / "bin" / "apt-get"
    apt.write_text(
        '#!/bin/sh\n[ "$3" = there ] && echo x > there_1_all.deb || { echo "E: Unable to locate" >&2; exit 100; }\n'
    )
    apt.chmod(0o755)
    monkeypatch.setenv("PATH", str(apt.parent), prepend=":")
    assert download("there", tmp_path) == tmp_path / "there_1_all.deb"
    with pytest.raises(ConfigError, match=r"package='gone': apt-get cannot download it \(Unable to locate\); give"):
        download("gone", tmp_path)


@pytest.mark.skipif(shutil.which("groff") is None, reason="needs groff")
def test_manual_pages_become_plain_text(monkeypatch, tmp_path):
    (tmp_path / "secret").write_text("confidentiel\n")
    requests = "".join(f".{request} {tmp_path}/secret\n" for request in ("so", "mso", "do so", "cf", "trf"))
    text = plain_text(f"{PAGE}{requests}Et la fin.\n.nx {tmp_path}/secret\n".encode())
    assert "confidentiel" not in text
    assert text.count("Et la fin.") == 1
    lines = text.splitlines()
    assert "Une phrase avec des mots gras et des « guillemets »." in lines
    assert "un   deux" in lines
    assert max(map(len, lines)) <= 100
    paragraph = [line for line in lines if line.startswith(("passer - laisser", "et aussi loin"))]
    assert "  " not in paragraph[0]  # not spread to the margin
    assert lines[0].split() == ["PASSER(1)", "General", "Commands", "Manual", "PASSER(1)"]
    assert {"NOM", "DESCRIPTION"} <= set(lines)
    # A page that never ends.
    monkeypatch.setattr(manual, "_SECONDS", 1)
    assert plain_text(b".TH X 1\n.while 1 .br\n") is None
    assert "NAME" in plain_text(b".Dd May 1, 2020\n.Dt X 1\n.Os\n.Sh NAME\n.Nm x\n.Nd does it\n")


@pytest.mark.skipif(shutil.which("groff") is None, reason="needs groff")
def test_domains_have_as_many_bytes(tmp_path, capsys):
    rst = [
        (f"./usr/share/doc/linux-doc-6.1/Documentation/{i}.rst.gz", gzip.compress(f"line {i}\n".encode() * 40))
        for i in range(9)
    ]
    rst += [("./usr/share/doc/linux-doc-6.1/Documentation/translations/de/x.rst", b"Zeile\n" * 90)]
    rst += [("./usr/share/doc/linux-doc-6.1/Documentation/latin.rst", b"\xe9\n" * 300)]
    english = package(tmp_path / "linux-doc-6.1_6.1.1-1_all.deb", rst)
    pages = [
        (f"./usr/share/man/fr/man1/p{i}.1.gz", gzip.compress(f"{PAGE}{i} fois {i} font {i * i}.\n".encode() * 3))
        for i in range(3)
    ]
    french = package(tmp_path / "manpages-fr_4.1_all.deb", pages, [("./usr/share/man/fr/man1/q.1.gz", "p1.1.gz")])
    flags = ("--only", "code,english,french", "--deb", english, "--deb", french)
    out = tmp_path / "texts"
    code, printed, error = call(capsys, main, *flags, "--bytes", 1000, "--out", out)
    assert (code, printed) == (0, f"{out}\n"), error
    contents = json.loads((out / "contents.json").read_text())
    for domain in ("code", "english", "french"):
        texts = [document.text for document in open_source(f"text:{out}/{domain}.jsonl").documents()]
        about = contents[domain]
        assert (about["documents"], about["bytes"]) == (len(texts), len("".join(texts).encode()))
        assert 800 < about["bytes"] <= 1000
        assert all(text.endswith("\n") for text in texts)
    assert contents["english"]["from"]["deb"] == english.name
    assert "Zeile" not in (out / "english.jsonl").read_text()
    # The same command makes the same files; what lies there stays as it is.
    assert call(capsys, main, *flags, "--bytes", 1000, "--out", tmp_path / "again")[0] == 0
    for name in ("code.jsonl", "english.jsonl", "french.jsonl", "contents.json"):
        assert (tmp_path / "again" / name).read_bytes() == (out / name).read_bytes()
    for wrong, problem in (
        (("--out", out), "is there already"),
        (("--out", tmp_path / "c", "--only", "english", "--bytes", "9999"), "bytes=9999: english has only 2520"),
        (("--out", tmp_path / "c", "--only", "frensh"), "only='frensh': no such domain; did you mean 'french'?"),
        (
            ("--out", tmp_path / "c", "--deb", tmp_path / "manpages-it_1_all.deb"),
            "packages are linux-doc-6.1, manpages-fr",
        ),
        (("--out", tmp_path / "c", "--deb", tmp_path / "manpages-de_1_all.deb"), "no such file"),
        (("--out", tmp_path / "c", "--bytes", "9"), "bytes=9: must be at least 200"),
    ):
        code, _, error = call(capsys, main, *flags, *wrong)
        assert code == 2
        assert problem in error
        assert [line for line in error.splitlines() if line.startswith("error: ")] == error.splitlines()[-1:]
        assert not (tmp_path / "c").exists()
