"""OpenWebText: 8,013,769 web pages (40 GB) that Reddit users linked to, the open counterpart of GPT-2's WebText."""

import functools
import lzma
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds

URLS = tuple(
    f"https://huggingface.co/datasets/Skylion007/openwebtext/resolve/main/subsets/urlsf_subset{subset:02d}.tar"
    for subset in range(21)
)
# TFDS keeps the texts of a shard in memory while it writes the shard; these many are about 200 MB.
ARCHIVES_PER_SHARD = 100


class OpenWebText(tfds.core.ShardBasedBuilder):
    """21 tars of `*_data.xz`, each of them a compressed tar of one `.txt` a document; a single split `train`.

    The texts are those of Hugging Face's `openwebtext`: no white space at the ends, at most one empty line in a row.
    Their order is the archives'. Not a `GeneratorBasedBuilder`: its shuffling writes whatever is beyond 1 GB through
    TensorFlow. The publisher names no checksums; TFDS notes down those of what it has downloaded.
    """

    name = "openwebtext"
    VERSION = tfds.core.Version("1.0.0")
    MAX_SIMULTANEOUS_DOWNLOADS = 4

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Web pages that Reddit posts with at least three upvotes linked to, as plain text.",
            features=tfds.features.FeaturesDict({"text": tfds.features.Text()}),
            homepage="https://skylion007.github.io/OpenWebTextCorpus/",
            citation="Aaron Gokaslan and Vanya Cohen. OpenWebText Corpus. 2019.",
        )

    def _shard_iterators_per_split(
        self, dl_manager: tfds.download.DownloadManager
    ) -> Mapping[str, Sequence[Callable[[], Iterator[tuple[str, dict[str, Any]]]]]]:
        shards = []
        for path in dl_manager.download(list(URLS)):
            with tarfile.open(path, "r:") as subset:
                archives = [member for member in subset if member.isfile() and member.name.endswith(".xz")]
            for start in range(0, len(archives), ARCHIVES_PER_SHARD):
                shards.append(functools.partial(_examples, path, archives[start : start + ARCHIVES_PER_SHARD]))
        # TFDS shows no progress of its own here: the list does, while TFDS goes through it.
        return {"train": tfds.core.utils.tqdm(shards, desc="Writing shards...", unit=" shards")}


def _examples(path: str, archives: Sequence[tarfile.TarInfo]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The documents in these `archives` of the tar at `path`, read as streams."""
    with tarfile.open(path, "r:") as subset:
        for archive in archives:
            compressed = subset.extractfile(archive)
            assert compressed is not None  # Those that are no files were left out.
            with lzma.open(compressed) as stream, tarfile.open(fileobj=stream, mode="r|") as texts:
                for member in texts:
                    file = texts.extractfile(member) if member.name.endswith(".txt") else None
                    if file is not None:
                        text = re.sub(r"\n{3,}", "\n\n", file.read().decode("utf-8")).strip()
                        yield f"{archive.name}/{member.name}", {"text": text}
                # Where a tar is cut off, it just ends; only the compression tells, at its end.
                while stream.read(1 << 20):
                    pass
