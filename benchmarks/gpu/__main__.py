"""The program: runs the sections one after the other, passes their lines on, and makes a table of them.

python -m benchmarks.gpu --out lines.jsonl; python -m benchmarks.gpu --table lines.jsonl
"""

import argparse
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import timing
from benchmarks.gpu.table import table

# Seconds that a section may take, its start and compilations included; 480 in all.
LIMITS = {"card": 40, "products": 80, "attention": 60, "step": 120, "grouped": 80, "decoding": 60, "remat": 40}


def own_lines(section: str, small: bool) -> Iterator[dict[str, Any]]:
    """What a section finds, as it finds it."""
    import jax

    about = {"section": section, "small": small, "device": jax.devices()[0].device_kind}
    for row in importlib.import_module(f"benchmarks.gpu.{section}").rows(small):
        yield about | row


def run_section(section: str, small: bool, limit: float, cache: str) -> Iterator[dict[str, Any]]:
    """The lines of a section that runs as a process; the last one tells why it ended, if not well."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--section", section, *(["--small"] if small else [])]
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "JAX_COMPILATION_CACHE_DIR": cache}
    begin = time.monotonic()
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
        overdue = threading.Timer(limit, process.kill)
        overdue.start()
        try:
            assert process.stdout is not None
            with process.stdout:
                for line in process.stdout:
                    if line.startswith("{"):  # libraries print too
                        yield json.loads(line)
            code = process.wait()
        finally:
            late = not overdue.is_alive()
            overdue.cancel()
            process.kill()
        errors.seek(0)
        words = [line for line in errors.read().splitlines() if line.strip()]
    took = {"section": section, "small": small, "seconds": round(time.monotonic() - begin, 1)}
    if code != 0 and late:
        yield took | {"failed": f"took longer than {limit:g} s"}
    elif code != 0:
        # Notes may follow the exception.
        named = [line for line in words if re.match(r"[\w.]+(Error|Exception|Interrupt)\b", line)] or words
        yield took | {"failed": named[-1][:400] if named else f"exit code {code}"}
    else:
        yield took


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__, allow_abbrev=False)
    parser.add_argument("--small", action="store_true", help="toy sizes, on a CPU too, to see that it runs")
    names = tuple(LIMITS)
    parser.add_argument("--only", type=timing.some_of(names), default=names, help=f"some of {','.join(names)}")
    parser.add_argument("--out", type=Path, help="a file to which every line is appended")
    parser.add_argument("--limit", type=float, help="seconds for each section, instead of its own limit")
    parser.add_argument("--table", type=Path, metavar="FILE", help="print the lines of FILE as tables; runs nothing")
    parser.add_argument("--section", choices=names, help=argparse.SUPPRESS)
    flags = parser.parse_args(argv)
    if flags.section:
        for line in own_lines(flags.section, flags.small):
            print(json.dumps(line, allow_nan=False), flush=True)
        return 0
    if flags.table:
        try:
            lines = [json.loads(line) for line in flags.table.read_text().splitlines() if line.strip()]
        except (OSError, ValueError) as error:
            parser.error(f"--table {flags.table}: {error}")
        print(table(lines))
        return 0
    failed = []
    with tempfile.TemporaryDirectory() as cache:
        for section in flags.only:
            for line in run_section(section, flags.small, flags.limit or LIMITS[section], cache):
                text = json.dumps(line, allow_nan=False)
                print(text, flush=True)
                if flags.out:
                    with flags.out.open("a") as file:
                        file.write(text + "\n")
                if "failed" in line:
                    failed.append(section)
    for section in failed:
        print(f"{section} failed: its last line says why", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
