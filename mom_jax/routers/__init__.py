"""Routers: scores for every token and class (paper section 3.2), and what is chosen by them.

Scores and choices are apart from the data movement that they cause (mom_jax/dispatch).
"""

from mom_jax.routers.prior import own_classes, prior_table, unless_left
from mom_jax.routers.router import Router
from mom_jax.routers.selection import Scores, Selection, select, straight_through, within_capacity

__all__ = [
    "Router",
    "Scores",
    "Selection",
    "own_classes",
    "prior_table",
    "select",
    "straight_through",
    "unless_left",
    "within_capacity",
]
