"""Runs the campaign: PYTHONPATH=tests:tests/helpers:tests/faults:. python -m campaign [--only WORDS] [--missing]

A campaign that was killed goes on where it was. The results of all of it, or of the jobs that a flag chose, take their
place in results.jsonl, and docs/faults.md is made of them.
"""

import argparse
import contextlib
import dataclasses
import functools
import json
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

import conftest  # noqa: F401  as for the tests: the CPU, one folder of compiled programs

from campaign import catalogue, table
from campaign.nursery import Nursery
from campaign.outcomes import Job, Outcome
from campaign.workshop import Workshop, shared_programs

WORK = Path(tempfile.gettempdir()) / "mom_jax_faults"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m campaign", description=__doc__)
    parser.add_argument("--only", metavar="WORDS", help="jobs whose group or name has these words")
    parser.add_argument("--missing", action="store_true", help="jobs that have no results in results.jsonl yet")
    parser.add_argument("--work", type=Path, default=WORK, help="a folder for the runs, and the results so far")
    parser.add_argument("--list", action="store_true", help="name the jobs and end")
    parser.add_argument("--table", action="store_true", help="only write the page from the results")
    flags = parser.parse_args()
    stack = contextlib.ExitStack()
    nursery = functools.cache(lambda: stack.enter_context(Nursery()))  # made when it is asked for
    jobs = [job for job in catalogue.jobs(nursery) if flags.only is None or flags.only in f"{job.group}: {job.name}"]
    if flags.missing:
        known = {row["job"] for row in table.read(table.RESULTS)}
        jobs = [job for job in jobs if job.name not in known]
    if flags.list:
        print(*(f"{job.group}: {job.name}" for job in jobs), sep="\n")
        return 0
    so_far, bad = flags.work / "results.jsonl", []
    if not flags.table:
        with stack:
            run(jobs, flags.work, so_far)
        new = table.read(so_far)
        bad = [row for row in new if row["wrong"] or row["silent"] or row["data"]]
        table.put(new, whole=flags.only is None and not flags.missing)
        so_far.unlink()
    rows = table.read(table.RESULTS)
    table.PAGE.write_text(table.page(rows, [job.name for job in catalogue.jobs(nursery)]))
    print(table.summary(rows))
    return 1 if bad else 0


def run(jobs: list[Job], work: Path, results: Path) -> None:
    """Does the jobs that have no results yet."""
    shop = Workshop(work)
    done = {row["job"] for row in table.read(results)}
    with shared_programs():
        shop.prepare()
        for number, job in enumerate(jobs, 1):
            if job.name in done:
                continue
            begun, place = time.time(), shop.place(job.name)
            try:
                outcomes = job.do(place)
            except Exception as error:  # of the campaign itself, or a traceback of a program
                traceback.print_exc()
                outcomes = [
                    Outcome(job.name, "", "the campaign itself failed", wrong=[f"{type(error).__name__}: {error}"])
                ]
            seconds = round((time.time() - begun) / max(1, len(outcomes)), 1)
            with results.open("a") as file:
                for outcome in outcomes:
                    row = {"job": job.name, "group": job.group, "seconds": seconds, **dataclasses.asdict(outcome)}
                    file.write(json.dumps(row).replace(str(work), "…") + "\n")
            bad = [outcome for outcome in outcomes if outcome.wrong or outcome.silent or outcome.data]
            print(f"[{number}/{len(jobs)}] {seconds} s {job.name}: {outcomes[-1].happened}", flush=True)
            for outcome in bad:
                print(f"    WRONG {outcome}", flush=True)
            if not bad:
                shutil.rmtree(place.folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
