"""Studies: arms and seeds from one file, their runs, and what they say side by side. Whoever writes one needs these."""

from train.study.changes import changed
from train.study.definition import After, Arm, Map, Study

__all__ = ["After", "Arm", "Map", "Study", "changed"]
