"""Checks what a run's folder holds, or a token cache: `python -m train.verify RUN`.

Reads all checkpoints, the log, the tokenizer and the tokens, compares them with their checksums and with each other,
and says what can be trusted. Changes nothing. The exit code is 2 where something is damaged.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from train.cli import in_one_line, run_program
from train.parse import parse_flags


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Flags of the program.

    Attributes:
        path: a run's folder, a token cache's, or a folder of caches.
        json: print one JSON object instead of lines.
    """

    path: Annotated[str, tyro.conf.Positional]
    json: bool = False


def main(arguments: Sequence[str] | None = None) -> int:
    flags = parse_flags(Arguments, arguments, prog="python -m train.verify", description=__doc__)

    from mom_jax.fields import require
    from train.training.keeping.verification import verify

    path = Path(flags.path).expanduser()
    require(path.is_dir(), "path", flags.path, "must be a folder")
    findings = []
    for finding in verify(path):
        findings.append(finding)
        if not flags.json:
            print(in_one_line(f"{finding.state:8} {finding.part}: {finding.text}"), flush=True)
    damaged = sum(finding.state == "damaged" for finding in findings)
    if flags.json:
        print(json.dumps({"damaged": damaged, "findings": [dataclasses.asdict(finding) for finding in findings]}))
    elif damaged:
        print(f"{damaged} of {len(findings)} parts cannot be trusted")
    return 2 if damaged else 0


if __name__ == "__main__":
    run_program(main)
