"""What GLUE's tasks are: their texts, classes, splits and metrics, and the files of a submission.

Names of splits, features and classes are those of TFDS's `glue`; files and labels are those of gluebenchmark.com.
"""

import dataclasses
from collections.abc import Sequence

from mom_jax.fields import ConfigError, nearest
from train.tasks import metrics


@dataclasses.dataclass(frozen=True)
class Task:
    """A task of GLUE.

    name: TFDS's configuration. title: as tables have it. texts: the features with the sentence or the pair. classes:
    their names in order; none where the label is a number. metrics: by the names that tables have. validation and test:
    splits, by a short name where there are several. submission: the file of each of `test`. words: a submission has
    the classes' names, not their numbers.
    """

    name: str
    title: str
    texts: tuple[str, ...]
    classes: tuple[str, ...]
    metrics: dict[str, metrics.Metric]
    submission: tuple[str, ...]
    words: bool = False
    validation: dict[str, str] = dataclasses.field(default_factory=lambda: {"": "validation"})
    test: tuple[str, ...] = ("test",)

    @property
    def source(self) -> str:
        """The data set, as `train.data.sources.tfds` names it."""
        return f"tfds:glue/{self.name}"


_PAIR, _ENTAILMENT = ("sentence1", "sentence2"), ("entailment", "not_entailment")
_NLI = ("entailment", "neutral", "contradiction")
_ACCURACY: dict[str, metrics.Metric] = {"accuracy": metrics.accuracy}
_PARAPHRASE: dict[str, metrics.Metric] = {"accuracy": metrics.accuracy, "F1": metrics.f1}
_SIMILARITY: dict[str, metrics.Metric] = {"Pearson": metrics.pearson, "Spearman": metrics.spearman}

TASKS = {
    task.name: task
    for task in (
        Task(
            "cola",
            "CoLA",
            ("sentence",),
            ("unacceptable", "acceptable"),
            {"Matthews": metrics.matthews},
            ("CoLA.tsv",),
        ),
        Task("sst2", "SST-2", ("sentence",), ("negative", "positive"), _ACCURACY, ("SST-2.tsv",)),
        Task("mrpc", "MRPC", _PAIR, ("not_equivalent", "equivalent"), _PARAPHRASE, ("MRPC.tsv",)),
        Task("qqp", "QQP", ("question1", "question2"), ("not_duplicate", "duplicate"), _PARAPHRASE, ("QQP.tsv",)),
        Task("stsb", "STS-B", _PAIR, (), _SIMILARITY, ("STS-B.tsv",)),
        Task(
            "mnli",
            "MNLI",
            ("premise", "hypothesis"),
            _NLI,
            _ACCURACY,
            ("MNLI-m.tsv", "MNLI-mm.tsv"),
            words=True,
            validation={"m": "validation_matched", "mm": "validation_mismatched"},
            test=("test_matched", "test_mismatched"),
        ),
        Task("qnli", "QNLI", ("question", "sentence"), _ENTAILMENT, _ACCURACY, ("QNLI.tsv",), words=True),
        Task("rte", "RTE", _PAIR, _ENTAILMENT, _ACCURACY, ("RTE.tsv",), words=True),
        Task("wnli", "WNLI", _PAIR, ("not_entailment", "entailment"), _ACCURACY, ("WNLI.tsv",)),
    )
}
# The diagnostics have a test split only, whose labels the benchmark keeps: MNLI's model predicts them.
DIAGNOSTICS = Task("ax", "AX", ("premise", "hypothesis"), _NLI, {}, ("AX.tsv",), words=True, validation={})
NAMES = (*TASKS, DIAGNOSTICS.name)
# GLUE's average over eight tasks. WNLI is left out, as is usual: its validation split is adversarial to its training
# split, so that no score there means anything.
AVERAGED = tuple(name for name in TASKS if name != "wnli")
HIGHEST_SIMILARITY = 5.0


def choose(names: Sequence[str]) -> tuple[list[Task], bool]:
    """(the tasks to fine-tune on, whether MNLI's model also predicts the diagnostics) for names, or for all if there
    are none. Raises ConfigError for an unknown name."""
    for name in names:
        if name not in NAMES:
            raise ConfigError(f"task={f'glue/{name}'!r}: unknown task; {nearest(name, NAMES)}")
    wanted = set(names or NAMES)
    diagnostics = DIAGNOSTICS.name in wanted
    if diagnostics:
        wanted.add("mnli")
    return [task for task in TASKS.values() if task.name in wanted], diagnostics
