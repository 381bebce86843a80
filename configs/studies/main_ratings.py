"""The main table's runs (configs/studies/main.py, and its folder), each then fine-tuned on texts with human ratings.

Command: python -m train.study configs/studies/main_ratings.py
"""

import dataclasses

from configs.studies import main
from configs.studies.texts.ratings import NEEDS, downstream
from train.study import Study


def get_study() -> Study:
    return dataclasses.replace(main.get_study(), after=downstream(), needs=NEEDS)
