"""The runs from scratch (configs/studies/one_phase.py, and its folder), each then fine-tuned on texts with ratings.

Command: python -m train.study configs/studies/ratings/one_phase.py
"""

from configs.studies import one_phase
from configs.studies.texts.ratings import with_ratings
from train.study import Study


def get_study() -> Study:
    return with_ratings(one_phase.get_study())
