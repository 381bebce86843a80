"""Our builders and TFDS's GLUE: their own parsers on small files in the formats that are downloaded."""

import gzip
import io
import json
import random
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import tensorflow_datasets as tfds
import tensorflow_datasets.text
from downloads import tar

from mom_jax.fields import ConfigError
from train.data.sources.builders import BUILDERS, openwebtext, xsum
from train.data.sources.tfds import open_tfds
from train.data.sources.tfds_builder import download_tfds


def zipped(files: dict[str, str]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return content.getvalue()


def prepare(source: str) -> None:
    lines: list[str] = []
    download_tfds(source, lines.append)
    assert lines


def texts(source: str, side: str | None = None) -> list[str]:
    return [d.text for part in open_tfds(source).parts if part.side == side for d in part.read()]


def examples(name: str, split: str, tmp_path: Path) -> list[dict]:
    """All of a split's examples in the order of their ids or indices."""
    return sorted(
        tfds.builder(name, data_dir=tmp_path / "tfds").as_data_source(split), key=lambda example: example["idx"]
    )


def test_openwebtext(internet, monkeypatch):
    monkeypatch.setattr(openwebtext, "ARCHIVES_PER_SHARD", 2)
    folder = "openwebtext/"
    for subset, url in enumerate(openwebtext.URLS):
        files = {folder: b""}
        for number in range(3 if subset == 0 else 1):
            texts_ = {
                f"{number}-b.txt": f" \n\nZweitens {subset}.{number}: größer\r\n\n\n\n\nals 雪 \U0001f600\n\n".encode(),
                "sub/": b"",
                "readme.md": b"no document",
                f"{number}-a.txt": f"Page {subset}.{number}\n\nend".encode(),
            }
            files[f"{folder}urlsf_subset{subset:02d}-{number}_data.xz"] = tar(texts_, "w:xz")
        files[f"{folder}urlsf_subset{subset:02d}-0_data.xz.lock"] = b""
        internet[url] = tar(files, "w")
    assert len(internet) == 21
    assert openwebtext.URLS[-1].endswith("/Skylion007/openwebtext/resolve/main/subsets/urlsf_subset20.tar")

    prepare("tfds:openwebtext")

    expected = []
    for subset in range(21):
        for number in range(3 if subset == 0 else 1):
            expected.append(f"Zweitens {subset}.{number}: größer\r\n\nals 雪 \U0001f600")
            expected.append(f"Page {subset}.{number}\n\nend")
    assert texts("tfds:openwebtext") == expected
    facts = open_tfds("tfds:openwebtext").facts
    assert facts["dataset"] == "openwebtext/1.0.0"
    train = facts["splits"]["train"]
    assert (train["examples"], train["shard_lengths"], len(train["files"])) == (46, [4, 2] + [2] * 20, 22)
    # TFDS knows it too.
    assert tfds.builder_cls("openwebtext") is BUILDERS["openwebtext"]


def test_openwebtexts_keys_tell_the_documents_apart(tmp_path):
    archive = tar({"1.txt": b"one", "2.txt": b"two"}, "w:xz")
    path = tmp_path / "subset.tar"
    path.write_bytes(tar({"o/s00-1_data.xz": archive, "o/s00-2_data.xz": archive}, "w"))
    with tarfile.open(path) as subset:
        members = subset.getmembers()
    keys = [key for key, _ in openwebtext._examples(str(path), members)]
    assert keys == [f"o/s00-{archive}_data.xz/{text}.txt" for archive in (1, 2) for text in (1, 2)]


def article(number: int) -> bytes:
    return (
        f"[SN]URL[SN]\nhttp://news.bbc.co.uk/{number}\n\n[SN]TITLE[SN]\nTitle {number}\n\n"
        f"[SN]FIRST-SENTENCE[SN]\nEin Satz über {number}.\n\n\n"
        f"[SN]RESTBODY[SN]\nShare this with\nEmail\nThese are external links and will open in a new window\n"
        f"Line one of {number} 雪.\n   \nEmail us\n\u2028Line two.\n"
    ).encode()


def write_xsum(internet: dict[str, bytes], splits: dict[str, list[int]], articles: list[int]) -> None:
    files = {"bbc-summary-data/": b"", "bbc-summary-data/readme": b"no article"}
    files |= {f"bbc-summary-data/{number}.summary": article(number) for number in articles}
    internet[xsum.ARTICLES] = gzip.compress(tar(files, "w"))
    ids = {split: [str(number) for number in numbers] for split, numbers in splits.items()}
    internet[xsum.SPLITS] = json.dumps(ids).encode()


def test_xsum(internet, tmp_path):
    splits = {"train": [3, 1, 4], "validation": [5], "test": [9, 2]}
    write_xsum(internet, splits, [1, 2, 3, 4, 5, 6, 9])

    prepare("tfds:xsum")

    for split, numbers in splits.items():
        builder = BUILDERS["xsum"](data_dir=str(tmp_path / "tfds"))
        found = sorted(builder.as_data_source(split), key=lambda example: example["id"])
        assert found == [
            {
                "id": str(number).encode(),
                "document": f"Line one of {number} 雪.\nEmail us\n\u2028Line two.".encode(),
                "summary": f"Ein Satz über {number}.".encode(),
            }
            for number in sorted(numbers)
        ]
    assert texts("tfds:xsum#summary", "validation") == ["Ein Satz über 5."]
    assert sorted(texts("tfds:xsum#summary", "train")) == [f"Ein Satz über {number}." for number in (1, 3, 4)]
    with pytest.raises(ConfigError, match="choose one: tfds:xsum#document or tfds:xsum#summary or tfds:xsum#id"):
        open_tfds("tfds:xsum")


def test_xsum_with_an_article_missing(internet, tmp_path):
    write_xsum(internet, {"train": [1, 7], "validation": [2], "test": [3]}, [1, 2, 3])
    with pytest.raises(ConfigError, match=r"a download is damaged \(it lacks 1 of 2 articles, 7 for one"):
        download_tfds("tfds:xsum", print)
    assert not list((tmp_path / "tfds" / "xsum").iterdir())


def test_xsums_checksums_are_known():
    checksums = BUILDERS["xsum"].url_infos
    assert set(checksums) == {xsum.ARTICLES, xsum.SPLITS}
    assert checksums[xsum.ARTICLES].size == 254582292


@pytest.mark.parametrize("cut", [20, 400, 900])
def test_a_damaged_download_is_told(internet, cut):
    whole = tar({f"{number}.txt": random.Random(number).randbytes(500).hex().encode() for number in range(3)}, "w:xz")
    assert len(whole) > 1000
    for url in openwebtext.URLS:
        internet[url] = tar({"o/s00-1_data.xz": whole[:-cut]}, "w")
    with pytest.raises(ConfigError, match=r"data\.source='tfds:openwebtext': a download is damaged"):
        download_tfds("tfds:openwebtext", print)


def test_glue_sst2(internet, tmp_path):
    rows = {
        "train": 'sentence\tlabel\na "quoted film\t1\nso naïve 雪 \t0\n',
        "dev": "sentence\tlabel\nfine\t1\n",
        "test": "index\tsentence\n0\tunknown\n",
    }
    internet["https://dl.fbaipublicfiles.com/glue/data/SST-2.zip"] = zipped(
        {f"SST-2/{split}.tsv": text for split, text in rows.items()}
    )
    prepare("tfds:glue/sst2")
    assert examples("glue/sst2", "train", tmp_path) == [
        {"sentence": b'a "quoted film', "label": 1, "idx": 0},
        {"sentence": "so naïve 雪 ".encode(), "label": 0, "idx": 1},
    ]
    assert examples("glue/sst2", "validation", tmp_path) == [{"sentence": b"fine", "label": 1, "idx": 0}]
    assert examples("glue/sst2", "test", tmp_path) == [{"sentence": b"unknown", "label": -1, "idx": 0}]
    # The only text feature; the test split is not read.
    assert sorted(texts("tfds:glue/sst2", "train")) == ['a "quoted film', "so naïve 雪 "]
    assert texts("tfds:glue/sst2", "validation") == ["fine"]


def test_glue_mnli_has_pairs_and_two_validation_splits(internet, tmp_path):
    header = "index\tsentence1\tsentence2\tgold_label\n"
    rows = {
        "train": f"{header}0\tEin Café.\tIt is a place.\tentailment\n1\tA.\tB.\tcontradiction\n",
        "dev_matched": f"{header}0\tC.\tD.\tneutral\n",
        "dev_mismatched": f"{header}0\tE.\tF.\tentailment\n",
        "test_matched": "index\tsentence1\tsentence2\n0\tG.\tH.\n",
        "test_mismatched": "index\tsentence1\tsentence2\n0\tI.\tJ.\n",
    }
    internet["https://dl.fbaipublicfiles.com/glue/data/MNLI.zip"] = zipped(
        {f"MNLI/{split}.tsv": text for split, text in rows.items()}
    )
    prepare("tfds:glue/mnli")
    assert examples("glue/mnli", "train", tmp_path) == [
        {"premise": "Ein Café.".encode(), "hypothesis": b"It is a place.", "label": 0, "idx": 0},
        {"premise": b"A.", "hypothesis": b"B.", "label": 2, "idx": 1},
    ]
    assert examples("glue/mnli", "validation_mismatched", tmp_path)[0]["premise"] == b"E."
    assert examples("glue/mnli", "test_matched", tmp_path)[0]["label"] == -1
    # No split has the name `validation`, so that the sides are left open.
    assert sorted(texts("tfds:glue/mnli#premise")) == ["A.", "Ein Café."]


def test_glue_mrpc_is_downloaded_as_tables(internet, tmp_path):
    glue = tensorflow_datasets.text.glue
    header = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
    internet[glue._MRPC_TRAIN] = f"{header}1\t10\t11\tOne ü\tUno\n0\t12\t13\tTwo\tTres\n".encode()
    internet[glue._MRPC_TEST] = f"{header}1\t20\t21\tThree\tDrei\n".encode()
    internet[glue._MRPC_DEV_IDS] = b"12\t13\n"
    prepare("tfds:glue/mrpc")
    assert examples("glue/mrpc", "train", tmp_path) == [
        {"sentence1": "One ü".encode(), "sentence2": b"Uno", "label": 1, "idx": 0}
    ]
    assert examples("glue/mrpc", "validation", tmp_path) == [
        {"sentence1": b"Two", "sentence2": b"Tres", "label": 0, "idx": 1}
    ]
    assert texts("tfds:glue/mrpc#sentence2", "validation") == ["Tres"]


def test_tensorflow_is_never_imported():
    program = """
import sys
import train.data.sources.tfds
assert "tensorflow_datasets" not in sys.modules
import train.data.sources.builders.extraction
try:
    train.data.sources.tfds.open_tfds("tfds:glue/no-such-task")
except train.data.sources.tfds.ConfigError:
    pass
assert "tensorflow_datasets" in sys.modules and "tensorflow" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture(autouse=True)
def no_tensorflow():
    yield
    assert "tensorflow" not in sys.modules
