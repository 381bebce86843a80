"""Routers: scores for every token and class (paper section 3.2), and what is chosen by them.

Scores and choices are apart from the data movement that they cause (mom_jax/dispatch).

router       the interface of a router, and a call of one
registry     kinds by name, users' own too; a router made of a configuration
feedforward, recurrent, history      the kinds
prior        which class may or should serve which step
balance      the bias that balances without a loss
selection    what is chosen, and what it weighs
"""

from mom_jax.routers import feedforward, history, recurrent  # noqa: F401  these register the kinds
from mom_jax.routers.balance import adjusted, has_balance_bias
from mom_jax.routers.prior import favoured_classes, own_classes, prior_table, unless_left
from mom_jax.routers.registry import make_router, register, router_class
from mom_jax.routers.router import Router, RouterStep, score
from mom_jax.routers.selection import Scores, Selection, select, straight_through, within_capacity

__all__ = [
    "Router",
    "RouterStep",
    "Scores",
    "Selection",
    "adjusted",
    "favoured_classes",
    "has_balance_bias",
    "make_router",
    "own_classes",
    "prior_table",
    "register",
    "router_class",
    "score",
    "select",
    "straight_through",
    "unless_left",
    "within_capacity",
]
