"""The main table's runs (configs/studies/main.py, and its folder), each then fine-tuned on texts with human ratings.

Command: python -m train.study configs/studies/ratings/main.py
"""

from configs.studies import main
from configs.studies.texts.ratings import with_ratings
from train.study import Study


def get_study() -> Study:
    return with_ratings(main.get_study())
