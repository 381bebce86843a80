"""Texts with human ratings, on which the models of a study's runs are fine-tuned.

They come with vaderSentiment 3.3.2 (Hutto & Gilbert, ICWSM 2014): films, tweets, products, newspaper editorials.
"""

from train.study import After
from train.tasks.finetune import FineTuneConfig
from train.tasks.labelled import Labelled

FOLDER = "data/hutto_ICWSM_2014"
FILES = {
    "films": "movieReviewSnippets_GroundTruth.txt",
    "tweets": "tweets_GroundTruth.txt",
    "products": "amazonReviewSnippets_GroundTruth.txt",
    "editorials": "nytEditorialSnippets_GroundTruth.txt",
}
ADVICE = (
    "run: pip download --no-binary :all: --no-deps vaderSentiment==3.3.2 && mkdir -p data && tar xOzf "
    "vaderSentiment-3.3.2.tar.gz vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz | tar xz -C data"
)

NEEDS = {f"{FOLDER}/{file}": ADVICE for file in FILES.values()}


def downstream() -> tuple[After, ...]:
    """Of each kind of text the ratings (correlations), and whether they are good or bad (accuracy)."""
    tuning = FineTuneConfig(learning_rate=3e-4, length=64)
    return tuple(
        Labelled(f"{kind}, {what}", f"{FOLDER}/{file}", labels, tuning=tuning)
        for kind, file in FILES.items()
        for what, labels in (("ratings", "number"), ("good or bad", "sign"))
    )
