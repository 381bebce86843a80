"""All of GLUE as it is downloaded, with few examples, which TFDS's own parsers read."""

import io
import random
import zipfile
from collections.abc import Callable

URL = "https://dl.fbaipublicfiles.com/glue/data/{}.zip"
GOOD, BAD = ["lovely", "bright", "sunny"], ["awful", "dark", "gloomy"]
NEUTRAL = ["the", "film", "was", "a", "day", "we", "saw", "it"]


def words(rng: random.Random, *own: str) -> str:
    """A sentence with the words `own` somewhere."""
    some = [*rng.choices(NEUTRAL, k=rng.randint(2, 6)), *own]
    rng.shuffle(some)
    return " ".join(some)


def sentence(rng: random.Random, label: int) -> str:
    """A sentence whose class is 1 if it has a good word, 0 if a bad one."""
    return words(rng, rng.choice(GOOD if label else BAD))


def pair(rng: random.Random, label: int) -> tuple[str, str]:
    """Two sentences, whose second tells the class."""
    return words(rng), words(rng, (BAD, GOOD, NEUTRAL)[label][rng.randrange(3)])


def rows(count: int, classes: int, seed: str, make: Callable) -> list[tuple]:
    rng = random.Random(seed)
    labels = [i % classes for i in range(count)]
    rng.shuffle(labels)
    return [(label, make(rng, label)) for label in labels]


def table(header: list[str], lines: list[list[str]], *, with_header: bool = True) -> str:
    return "".join("\t".join(line) + "\n" for line in ([header] if with_header else []) + lines)


def archive(folder: str, files: dict[str, str]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as target:
        for name, text in files.items():
            target.writestr(f"{folder}/{name}.tsv", text)
    return content.getvalue()


def pairs_archive(
    folder: str, count: int, label: Callable[[int], str], column: str, texts: tuple[str, str], classes: int = 2, **names
) -> bytes:
    """train, dev and test of a task of pairs. names: other names of the files, by side."""
    files = {}
    for side, sides in {"train": ["train"], "dev": ["dev"], "test": ["test"], **names}.items():
        for file in sides:
            made = rows(count if side == "train" else 4, classes, file, pair)
            labelled = side != "test"
            header = ["index", *texts, *([column] if labelled else [])]
            lines = [[str(n), *own, *([label(k)] if labelled else [])] for n, (k, own) in enumerate(made)]
            files[file] = table(header, lines)
    return archive(folder, files)


def sst2(train: int, dev: int = 8, test: int = 4) -> dict[str, bytes]:
    files = {}
    for side, count in (("train", train), ("dev", dev)):
        lines = [[text, str(label)] for label, text in rows(count, 2, side, sentence)]
        files[side] = table(["sentence", "label"], lines)
    lines = [[str(n), text] for n, (_, text) in enumerate(rows(test, 2, "test", sentence))]
    files["test"] = table(["index", "sentence"], lines)
    return {URL.format("SST-2"): archive("SST-2", files)}


def rte(train: int = 8) -> dict[str, bytes]:
    words = ("entailment", "not_entailment")
    return {URL.format("RTE"): pairs_archive("RTE", train, words.__getitem__, "label", ("sentence1", "sentence2"))}


def everything(train: int = 8) -> dict[str, bytes]:
    """All eleven downloads by URL."""
    from tensorflow_datasets.text import glue

    plain, two = ("sentence1", "sentence2"), ("entailment", "not_entailment")
    three = ("entailment", "neutral", "contradiction")
    cola = {
        side: table([], [["gj04", str(k), "", text] for k, text in rows(n, 2, side, sentence)], with_header=False)
        for side, n in (("train", train), ("dev", 4))
    }
    unknown = [[str(n), text] for n, (_, text) in enumerate(rows(4, 2, "cola", sentence))]
    cola["test"] = table(["index", "sentence"], unknown)
    sides = {"dev": ["dev_matched", "dev_mismatched"], "test": ["test_matched", "test_mismatched"]}
    content = {
        **sst2(train),
        **rte(train),
        URL.format("CoLA"): archive("CoLA", cola),
        URL.format("QQP"): pairs_archive("QQP", train, str, "is_duplicate", ("question1", "question2")),
        # From 0 to 5, with decimals.
        URL.format("STS-B"): pairs_archive("STS-B", train, lambda k: f"{k * 2.4:.3f}", "score", plain, classes=3),
        URL.format("MNLI"): pairs_archive("MNLI", train, three.__getitem__, "gold_label", plain, classes=3, **sides),
        URL.format("QNLIv2"): pairs_archive("QNLI", train, two.__getitem__, "label", ("question", "sentence")),
        URL.format("WNLI"): pairs_archive("WNLI", train, str, "label", plain),
    }
    diagnostics = [[str(n), *own] for n, (_, own) in enumerate(rows(5, 3, "ax", pair))]
    content["https://bit.ly/2BOtOJ7"] = table(["index", "sentence1", "sentence2"], diagnostics).encode()
    header = ["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"]

    def mrpc(side: str, count: int) -> bytes:
        lines = [[str(k), f"{n}", f"{n}00", *own] for n, (k, own) in enumerate(rows(count, 2, side, pair))]
        return ("\ufeff" + table(header, lines)).encode()

    content[glue._MRPC_TRAIN] = mrpc("mrpc", train + 2)
    content[glue._MRPC_TEST] = mrpc("mrpc-test", 3)
    content[glue._MRPC_DEV_IDS] = b"1\t100\n3\t300\n"
    return content
