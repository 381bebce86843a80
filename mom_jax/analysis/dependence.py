"""What a choice depends on: how much of its entropy the step explains, how much more the token's identity, and what is
left to the context. All in nats, of the best choice of each token at each step (`SideRoutes.top`).

    H(choice) = I(choice; step) + I(choice; token | step) + H(choice | step, token)

These are plug-in estimates from counts. An information of small samples is too large, since a token that is seen once
explains its choice whatever that is; a permutation baseline says by how much: the same estimate after the choices have
been dealt anew, for the step among all, for the token among the tokens of each step. What an estimate exceeds its
baseline by is information; the rest term is too small by as much.
"""

import dataclasses

import numpy as np

from mom_jax.analysis.routes import Routes, SideRoutes
from mom_jax.config import Side


@dataclasses.dataclass(frozen=True)
class Dependence:
    """Nats. entropy: H(choice) over all tokens and steps. step: I(choice; step). token: I(choice; token | step).
    context: H(choice | step, token), what is left. step_baseline, token_baseline: of dealt choices."""

    entropy: float
    step: float
    token: float
    context: float
    step_baseline: float
    token_baseline: float

    @property
    def shares(self) -> dict[str, float]:
        """Of the entropy what the step, the token and the context explain, without the baselines: they add up to 1,
        and are nan where the choice is always the same."""
        step = max(0.0, self.step - self.step_baseline)
        token = max(0.0, self.token - self.token_baseline)
        values = {"step": step, "token": token, "context": self.entropy - step - token}
        return {name: value / self.entropy if self.entropy > 0 else float("nan") for name, value in values.items()}


def entropy(labels: np.ndarray) -> float:
    """The plug-in entropy of labels, nats."""
    counts = np.unique(np.asarray(labels).ravel(), return_counts=True)[1]
    return _entropy(counts)


def mutual_information(x: np.ndarray, y: np.ndarray) -> float:
    """The plug-in mutual information I(x; y) of paired labels, nats."""
    x, y = (np.unique(np.asarray(labels).ravel(), return_inverse=True)[1] for labels in (x, y))
    table = np.bincount(x * (int(y.max(initial=0)) + 1) + y)
    return _entropy(np.bincount(x)) + _entropy(np.bincount(y)) - _entropy(table)


def _entropy(counts: np.ndarray) -> float:
    counts = counts[counts > 0].astype(np.float64)
    share = counts / counts.sum()
    # Not below 0 by rounding, and no minus zero.
    return max(0.0, float(-(share * np.log(share)).sum())) + 0.0


def dependence(routes: Routes, *, permutations: int = 10, seed: int = 0) -> dict[Side, Dependence]:
    """Of each routed side. permutations: deals that the baselines are means of; at least 1."""
    tokens = np.unique(routes.ids_T, return_inverse=True)[1]
    return {side: _side(own, tokens, permutations, np.random.default_rng(seed)) for side, own in routes.sides.items()}


def _side(routes: SideRoutes, tokens_T: np.ndarray, permutations: int, rng: np.random.Generator) -> Dependence:
    top = routes.top
    steps = np.broadcast_to(np.arange(len(top))[:, None], top.shape)

    def of_token(choices: np.ndarray) -> float:
        # Every step has as many tokens.
        return max(0.0, float(np.mean([mutual_information(row, tokens_T) for row in choices])))

    def of_step(choices: np.ndarray) -> float:
        return max(0.0, mutual_information(choices, steps))

    total, step, token = entropy(top), of_step(top), of_token(top)
    return Dependence(
        entropy=total,
        step=step,
        token=token,
        context=max(0.0, total - step - token),
        step_baseline=float(np.mean([of_step(rng.permutation(top.ravel())) for _ in range(permutations)])),
        token_baseline=float(np.mean([of_token(rng.permuted(top, axis=1)) for _ in range(permutations)])),
    )
