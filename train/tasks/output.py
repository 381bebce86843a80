"""What an evaluation leaves: a JSON file and a Markdown table, and the same on the screen."""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from train.checkpoints.formats import is_run
from train.checkpoints.locate import find
from train.files import check_no_links, to_json, write_whole, writing
from train.numbers import for_json


def output_folder(given: str | None, checkpoints: Sequence[str], name: str, *, best: bool) -> Path:
    """Where a program writes: what the user has given, or the folder `name` of the run whose checkpoint it reads, or,
    of several and of other models, in the current one. Raises ConfigError where that folder of a run, which may be a
    stranger's, is a link."""
    if given is not None:
        return Path(given).expanduser()
    [first, *more] = checkpoints
    if more or not is_run(first, "checkpoint"):
        return Path(name)
    run = find(first, field="checkpoint", best=best).run
    check_no_links(run, (name,), f"checkpoint={first!r}")
    return run / name


@dataclasses.dataclass(frozen=True)
class Results:
    """records: of each checkpoint, ready for JSON. table: Markdown, for the file. text: what is printed. documents: of
    each document, if there are any."""

    task: str
    records: list[dict[str, Any]]
    table: str
    text: str
    documents: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def finish(self, output: Path, *, as_json: bool) -> None:
        """Writes `TASK.json`, `TASK.md` and, of documents, `TASK_documents.jsonl` into `output`; prints the text or, as
        JSON, the record (a list where there are several). Raises ConfigError where files cannot be written."""
        records = for_json(self.records)
        with writing(output):
            output.mkdir(parents=True, exist_ok=True)
            write_whole(output / f"{self.task}.json", to_json(records, indent=1))
            write_whole(output / f"{self.task}.md", (self.table.rstrip() + "\n").encode())
            if self.documents:
                lines = b"".join(to_json(for_json(document)) for document in self.documents)
                write_whole(output / f"{self.task}_documents.jsonl", lines)
            else:  # those of an evaluation before would not be these tables'
                (output / f"{self.task}_documents.jsonl").unlink(missing_ok=True)
        shown = records if len(records) > 1 else records[0]
        print(json.dumps(shown, allow_nan=False) if as_json else self.text.rstrip())
        print(f"written: {output / self.task}.json and .md", file=sys.stderr)
