"""Fine-tuning on labelled texts of one's own: a file with a line for each text."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mom_jax.fields import ConfigError, check_types, require
from mom_jax.sharding import make_mesh
from train.checkpoints.models import encoding_tokenizer, open_model
from train.files import read_bytes
from train.tasks import metrics
from train.tasks.batches import Example
from train.tasks.finetune import finetune, predict, with_head
from train.tasks.settings import FineTuneConfig

Labels = Literal["number", "sign", "class"]


@dataclasses.dataclass(frozen=True)
class Line:
    """One text. held_out: whether it is for validation."""

    label: str
    text: str
    held_out: bool


@dataclasses.dataclass(frozen=True)
class Labelled:
    """A task of labelled texts, on which a model is fine-tuned from its checkpoint and evaluated after the last epoch.

    Attributes:
        name: as tables have it.
        file: UTF-8, a text a line: id, label, text, with tabs between and no header.
        labels: `number` is a regression (squared error; Pearson's and Spearman's correlation, as in STS-B); `sign` has
            two classes, above and below 0, and leaves out zeros (accuracy, as in SST-2); `class` takes each label for a
            class (accuracy).
        fraction: the share of groups held out for validation, by the hash of their names.
        group: texts whose ids are the same up to this separator are one group, such as the sentences of one review.
        tuning: how the model is fine-tuned; the seed is the run's.
    """

    name: str
    file: str
    labels: Labels = "number"
    fraction: float = 0.2
    group: str = "_"
    tuning: FineTuneConfig = FineTuneConfig()

    def __post_init__(self) -> None:
        check_types(self)
        require(0 < self.fraction < 1, "fraction", self.fraction, "must lie between 0 and 1")
        require(len(self.group) > 0, "group", self.group, "must not be empty")

    def settings(self) -> dict[str, Any]:
        """What a result depends on, the model and the seed aside. Raises ConfigError where the file is not there, or a
        library for the metrics is not."""
        metrics.check_libraries(("sklearn.metrics", "scikit-learn"), ("scipy.stats", "scipy"))
        own = {"labels": self.labels, "fraction": self.fraction, "group": self.group}
        recipe = {**self.tuning.recipe(), "evaluation_limit": self.tuning.evaluation_limit}
        return {"sha256": hashlib.sha256(self._content()).hexdigest(), **own, **recipe}

    def lines(self) -> list[Line]:
        """The texts in the file's order. Raises ConfigError naming the first line that is none, and for a side without
        texts."""
        try:
            rows = self._content().decode().split("\n")
        except UnicodeDecodeError as error:
            raise ConfigError(f"file={self.file!r}: must be UTF-8 ({error})") from None
        found = []
        for number, row in enumerate(rows, 1):
            if not row.strip():
                continue
            parts = row.rstrip("\r").split("\t", 2)
            good = len(parts) == 3 and (self.labels == "class" or _is_number(parts[1]))
            require(good, "file", self.file, f"line {number} must be an id, a label and a text, with tabs between")
            key, label, text = parts
            if self.labels == "sign" and float(label) == 0:
                continue
            found.append(Line(label, text, self._held_out(key)))
        for side in (False, True):
            sides = "validation" if side else "training"
            require(any(line.held_out == side for line in found), "file", self.file, f"has no text for {sides}")
        return found

    def __call__(self, run: Path, seed: int) -> dict[str, float]:
        """Metrics in %, on the held-out texts, of the model at `run` after fine-tuning. Raises ConfigError for what is
        no model, or reads no texts of that length."""
        opened = open_model(run, field="run")
        tokenizer = encoding_tokenizer(str(run), opened, None)
        length, room = self.tuning.length, opened.config.context_length
        require(length <= room, "tuning.length", length, f"must be at most the model's {room}")
        lines = self.lines()
        classes = self._classes(lines)
        rows = tokenizer.encode_batch([line.text for line in lines])
        separator = tokenizer.encode("\n")
        examples: dict[bool, list[Example]] = {False: [], True: []}
        for line, ids in zip(lines, rows, strict=True):
            tokens = np.asarray(ids[:length] if len(ids) else separator, np.int32)
            examples[line.held_out].append(Example(tokens, self._label(line.label, classes)))
        training = examples[False][: self.tuning.train_limit or None]
        held_out = examples[True][: self.tuning.evaluation_limit or None]
        mesh = make_mesh()
        network, params = with_head(opened.config, opened.params, len(classes) or 1, seed)
        unit = "example_loss" if classes else "squared_error"
        label = f"{run}: {self.name}"
        tuned = finetune(network, params, training, self.tuning, seed, mesh, label=label, unit=unit)
        outputs = predict(network, tuned.params, held_out, self.tuning, mesh)
        labels = np.array([example.label for example in held_out])
        if classes:
            return {"accuracy": metrics.accuracy(labels, outputs.argmax(1))}
        return {"Pearson": metrics.pearson(labels, outputs[:, 0]), "Spearman": metrics.spearman(labels, outputs[:, 0])}

    def _content(self) -> bytes:
        return read_bytes(Path(self.file).expanduser(), f"file={self.file!r}")

    def _held_out(self, key: str) -> bool:
        digest = hashlib.sha256(key.partition(self.group)[0].encode()).digest()
        return int.from_bytes(digest[:8], "big") < self.fraction * 2**64

    def _classes(self, lines: list[Line]) -> tuple[str, ...]:
        """In order; none where labels are numbers."""
        if self.labels == "number":
            return ()
        return ("negative", "positive") if self.labels == "sign" else tuple(sorted({line.label for line in lines}))

    def _label(self, label: str, classes: tuple[str, ...]) -> int | float:
        if self.labels == "number":
            return float(label)
        return int(float(label) > 0) if self.labels == "sign" else classes.index(label)


def _is_number(text: str) -> bool:
    try:
        return bool(np.isfinite(float(text)))
    except ValueError:
        return False
