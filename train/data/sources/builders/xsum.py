"""XSUM: BBC articles and the sentence that sums each up (204,045 for training, 11,332 and 11,334 held out)."""

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds

ARTICLES = "http://bollin.inf.ed.ac.uk/public/direct/XSUM-EMNLP18-Summary-Data-Original.tar.gz"
SPLITS = (
    "https://raw.githubusercontent.com/EdinburghNLP/XSum/master/XSum-Dataset/XSum-TRAINING-DEV-TEST-SPLIT-90-5-5.json"
)
# The page's buttons, which are no part of the article.
_BUTTONS = {
    b"Share this with\n",
    b"Email\n",
    b"Facebook\n",
    b"Messenger\n",
    b"Twitter\n",
    b"Pinterest\n",
    b"WhatsApp\n",
    b"Linkedin\n",
    b"LinkedIn\n",
    b"Copy this link\n",
    b"These are external links and will open in a new window\n",
}


# Not registered with TFDS, whose own `xsum` is another one: it wants files that the user has collected by hand.
class Xsum(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """The authors' archive of `ID.summary` files, split by their list of ids.

    The texts are those of Hugging Face's `xsum`. Both downloads are checked by `checksums.tsv`.
    """

    name = "xsum"
    VERSION = tfds.core.Version("1.2.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="BBC articles (document) with their introductory sentence (summary) and the BBC's id.",
            features=tfds.features.FeaturesDict(
                {name: tfds.features.Text() for name in ("document", "summary", "id")},
            ),
            supervised_keys=("document", "summary"),
            homepage="https://github.com/EdinburghNLP/XSum",
            citation="Shashi Narayan, Shay B. Cohen and Mirella Lapata. Don't Give Me the Details, Just the Summary! "
            "Topic-Aware Convolutional Neural Networks for Extreme Summarization. EMNLP 2018.",
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[str, dict[str, str]]]]:
        files = dl_manager.download({"articles": ARTICLES, "splits": SPLITS})
        ids = json.loads(Path(files["splits"]).read_text("utf-8"))
        return {
            split: self._generate_examples(files["articles"], frozenset(ids[split]))
            for split in ("train", "validation", "test")
        }

    def _generate_examples(self, articles: str, ids: frozenset[str]) -> Iterator[tuple[str, dict[str, str]]]:
        missing = set(ids)
        with tarfile.open(articles, "r|gz") as archive:
            for member in archive:
                name = Path(member.name)
                file = archive.extractfile(member) if name.suffix == ".summary" and name.stem in missing else None
                if file is not None:
                    missing.remove(name.stem)
                    lines = (line for line in file if line not in _BUTTONS and line.strip())
                    # [SN]URL[SN] ... [SN]TITLE[SN] ... [SN]FIRST-SENTENCE[SN] ... [SN]RESTBODY[SN] ...
                    sections = b"".join(lines).decode("utf-8").split("[SN]")
                    document, summary = sections[8].strip(), sections[6].strip()
                    yield name.stem, {"document": document, "summary": summary, "id": name.stem}
        if missing:
            raise tarfile.ReadError(f"it lacks {len(missing)} of {len(ids)} articles, {min(missing)} for one")
