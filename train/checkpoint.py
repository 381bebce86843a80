"""Reading checkpoints, for programs and users: `load(path) -> (model, tokenizer)`.

Writing and reading with orbax, and all formats, are in `train/checkpoints/`.
"""

from train.checkpoints.locate import find
from train.checkpoints.models import load, open_model

__all__ = ["find", "load", "open_model"]
