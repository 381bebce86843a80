"""The benchmarks' metrics, as scikit-learn, SciPy and rouge-score compute them: all in percent.

Those libraries are the extra `[eval]` and are imported where they are used.
"""

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mom_jax.fields import ConfigError

Metric = Callable[[np.ndarray, np.ndarray], float]
ROUGE = ("rouge1", "rouge2", "rougeL")


def library(module: str, package: str) -> Any:
    """An optional library. Raises ConfigError saying what to install where it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        how = "pip install 'mom_jax[eval]'"
        raise ConfigError(f"this metric needs {package}, which cannot be imported ({error}); {how}") from None


def accuracy(labels: np.ndarray, predictions: np.ndarray) -> float:
    """The share of predictions [N] that equal the labels [N]."""
    return 100 * float(library("sklearn.metrics", "scikit-learn").accuracy_score(labels, predictions))


def f1(labels: np.ndarray, predictions: np.ndarray) -> float:
    """The harmonic mean of precision and recall of class 1; 0 where it is never predicted."""
    score = library("sklearn.metrics", "scikit-learn").f1_score(labels, predictions, zero_division=0)
    return 100 * float(score)


def matthews(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Matthews' correlation coefficient; 0 where all predictions are the same."""
    return 100 * float(library("sklearn.metrics", "scikit-learn").matthews_corrcoef(labels, predictions))


def pearson(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Pearson's correlation; 0 where it is undefined, since one side is constant."""
    return _correlation("pearsonr", labels, predictions)


def spearman(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Spearman's rank correlation; 0 where it is undefined, since one side is constant."""
    return _correlation("spearmanr", labels, predictions)


def _correlation(name: str, labels: np.ndarray, predictions: np.ndarray) -> float:
    stats = library("scipy.stats", "scipy")
    if np.ptp(labels) == 0 or np.ptp(predictions) == 0:
        return 0.0
    return 100 * float(getattr(stats, name)(np.float64(labels), np.float64(predictions)).statistic)


def rouge(references: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """The mean F1 of ROUGE-1, ROUGE-2 and ROUGE-L (of the whole text, not by sentences), with Porter's stemmer."""
    scorer = library("rouge_score.rouge_scorer", "rouge-score").RougeScorer(list(ROUGE), use_stemmer=True)
    scores = [scorer.score(*pair) for pair in zip(references, predictions, strict=True)]
    return {name: 100 * float(np.mean([score[name].fmeasure for score in scores])) for name in ROUGE}


def check_libraries(*modules: tuple[str, str]) -> None:
    """Raises ConfigError unless all (module, package) can be imported: before hours of work, not after."""
    for module, package in modules:
        library(module, package)
