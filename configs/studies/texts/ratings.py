"""Texts with human ratings, on which the models of a study's runs are fine-tuned.

They come with vaderSentiment 3.3.2 (Hutto & Gilbert, ICWSM 2014). Film reviews are what SST-2 is of; tweets are the
shortest of the texts there.
"""

import dataclasses

from train.study import Study
from train.tasks.labelled import Labelled
from train.tasks.settings import FineTuneConfig

FOLDER = "data/hutto_ICWSM_2014"
FILMS = f"{FOLDER}/movieReviewSnippets_GroundTruth.txt"
TWEETS = f"{FOLDER}/tweets_GroundTruth.txt"

_ADVICE = (
    "run: pip download --no-binary :all: --no-deps vaderSentiment==3.3.2 && mkdir -p data && tar xOzf "
    "vaderSentiment-3.3.2.tar.gz vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz | tar xz -C data"
)


def with_ratings(study: Study) -> Study:
    """The study with two tasks after each run: two classes as in SST-2, and a regression as in STS-B."""
    tuning = FineTuneConfig(learning_rate=3e-4, length=64)
    tasks = (
        Labelled("films, good or bad", FILMS, "sign", tuning=tuning),
        Labelled("tweets, ratings", TWEETS, "number", tuning=tuning),
    )
    return dataclasses.replace(study, after=tasks, needs=dict.fromkeys((FILMS, TWEETS), _ADVICE))
