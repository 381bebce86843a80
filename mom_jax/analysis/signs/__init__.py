"""Signs of failure: plain records of a run in, findings in plain words out (docs/signs.md)."""

from mom_jax.analysis.signs.history import History, Point
from mom_jax.analysis.signs.rules import RULES, Finding, before_training, findings, judge
from mom_jax.analysis.signs.thresholds import SignsConfig

__all__ = ["RULES", "Finding", "History", "Point", "SignsConfig", "before_training", "findings", "judge"]
