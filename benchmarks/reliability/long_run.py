"""Whether a long run stays as it began: memory, open files, threads and the time of a step.

    python -m benchmarks.reliability.long_run [--steps 20000] [--json]

Trains a tiny Mixture-of-Modules as a user does, `python -m train.main`, with evaluations, analyses, checkpoints and the
log, and looks at the process from outside, twice a second (Linux: /proc). `early`: steps from a tenth to two tenths of
the run, when all is compiled; `late`: the last tenth. Of both the medians: resident memory in MiB, open files, threads,
and milliseconds of a step, as the log has them. `rss_mib`: resident memory at the end of each tenth. `mib_per_1000`:
how much of it 1,000 steps add, by a line through all samples behind the first tenth.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.measuring import timing
from mom_jax.config import ModelConfig, RouterConfig
from train.config import AnalysisConfig, CheckpointConfig, Config, DataConfig, OptimConfig, Phase
from train.reporting import metrics

ROOT = Path(__file__).parents[2]
_PERIOD = 0.5  # seconds between two looks


class Sample(NamedTuple):
    """What /proc says of the process after a step. rss: bytes."""

    step: int
    rss: int
    files: int
    threads: int


def get_config() -> Config:
    """As small as a run can be."""
    model = ModelConfig(
        context_length=16,
        d_model=16,
        num_heads=2,
        num_bottom=0,
        num_attn_modules=2,
        num_ffn_modules=2,
        num_steps=1,
        top_k=1,
        router=RouterConfig(dim=8),
    )
    return Config(
        model=model,
        data=DataConfig(source=f"text:{ROOT}/docs/*.md", vocab_size=512, batch_size=4, length=16, validation_batches=2),
        phases=(Phase("mom", 20_000, optim=OptimConfig(warmup_steps=10)),),
        checkpoint=CheckpointConfig(keep=2),
        analysis=AnalysisConfig(tokens=64),
        final_batches=2,
    )


def measure(steps: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        often = str(max(5, steps // 200))  # all of it has been done several times before `early`
        flags = ["--run", str(run), "--data.cache", f"{folder}/cache", "--phases.0.steps", str(steps)]
        flags += ["--checkpoint.every", often, "--analysis.every", often, "--evaluate-every", often]
        command = [sys.executable, "-m", "train.main", "--config", __file__, *flags]
        start = time.monotonic()
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
            samples = list(_watched(process, run / metrics.FILE))
        if process.returncode != 0:
            raise SystemExit(f"training ended with {process.returncode}")
        seconds = time.monotonic() - start
        records = [record for record in metrics.read(run / metrics.FILE) if record["kind"] == "train"]
        saved = len([path for path in (run / "checkpoints" / "mom").iterdir() if path.name.isdecimal()])
    assert [record["step"] for record in records] == list(range(1, steps + 1))
    samples = [sample for sample in samples if sample.step < steps]  # the end compiles and draws once more
    tenth = steps // 10
    ends = [max((s for s in samples if s.step <= tenth * i), default=samples[0]) for i in range(1, 11)]
    later = [sample for sample in samples if sample.step >= tenth]
    slope = np.polyfit([s.step / 1000 for s in later], [s.rss / 2**20 for s in later], 1)[0]
    return {
        "steps": steps,
        "seconds": round(seconds, 1),
        "samples": len(samples),
        "early": _medians(samples, records, tenth, 2 * tenth),
        "late": _medians(samples, records, steps - tenth, steps),
        "rss_mib": [round(sample.rss / 2**20, 1) for sample in ends],
        "mib_per_1000": round(float(slope), 3),
        "checkpoints": saved,
        **timing.machine(),
    }


def _watched(process: subprocess.Popen, log: Path) -> Any:
    """Samples as long as it runs and there are steps."""
    while process.poll() is None:
        time.sleep(_PERIOD)
        step = _last_step(log)
        try:
            status = dict(line.split(":", 1) for line in Path(f"/proc/{process.pid}/status").read_text().splitlines())
            files = len(os.listdir(f"/proc/{process.pid}/fd"))
            sample = Sample(step or 0, 1024 * int(status["VmRSS"].split()[0]), files, int(status["Threads"]))
        except (OSError, KeyError):  # it has ended
            return
        if step is not None:
            yield sample


def _last_step(log: Path) -> int | None:
    """The step of the last whole line of a log."""
    if not log.exists():
        return None
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 2**16))
        lines = file.read().split(b"\n")[:-1]
    return int(json.loads(lines[-1])["step"]) if lines else None


def _medians(samples: list[Sample], records: list[dict[str, Any]], first: int, last: int) -> dict[str, float]:
    """Of the steps from the one to the other."""
    some = [sample for sample in samples if first <= sample.step <= last] or samples[-1:]
    steps = [1000 * r["seconds"] for r in records[first:last] if r["seconds"] is not None]
    return {
        "rss_mib": round(statistics.median(sample.rss for sample in some) / 2**20, 1),
        "files": statistics.median(sample.files for sample in some),
        "threads": statistics.median(sample.threads for sample in some),
        "step_ms": round(statistics.median(steps), 3),
    }


def main() -> None:
    parser = timing.parser("reliability.long_run", __doc__, rounds=1)
    parser.add_argument("--steps", type=timing.positive, default=20_000, help="of the run (%(default)s)")
    flags = parser.parse_args()
    timing.report(measure(400 if flags.small else flags.steps), flags.json)


if __name__ == "__main__":
    main()
