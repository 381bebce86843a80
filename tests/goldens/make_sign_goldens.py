"""Writes signs.json.xz: what the signs of failure read in the logs of `python -m benchmarks.signs --folder FOLDER`.

`python tests/goldens/make_sign_goldens.py FOLDER`, from the project's root. Numbers to four digits.
"""

import json
import lzma
import sys
from pathlib import Path

from benchmarks.signs import WAYS
from train.reporting import metrics

TRAIN = ("kind", "step", "loss", "total", "balance", "grad_norm", "learning_rate")
ROUTERS = ("usage", "grad_norm", "update")


def short(value):
    if isinstance(value, dict):
        return {key: short(item) for key, item in value.items() if not key.endswith("_NxN")}
    if isinstance(value, list):
        return [short(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def slim(record):
    """Only what is read."""
    kind = record["kind"]
    names = {"train": TRAIN, "final": ("kind", "step", "exchanged"), "validation": ("kind", "step")}
    names["analysis"] = ("kind", "step", "similarity", "dependence", "churn")
    kept = {name: record[name] for name in names[kind]}
    if kind in ("train", "validation"):
        kept["routers"] = {
            side: {name: own[name] for name in ROUTERS if name in own and (name == "usage") == (kind == "validation")}
            for side, own in record["routers"].items()
        }
    return short(kept)


def main(folder):
    logs = {way: metrics.read(Path(folder) / way / metrics.FILE) for way in WAYS}
    slimmed = {way: [slim(r) for r in records if r["kind"] != "sign"] for way, records in logs.items()}
    packed = lzma.compress(json.dumps(slimmed, separators=(",", ":")).encode(), preset=9)
    (Path(__file__).parent / "signs.json.xz").write_bytes(packed)


if __name__ == "__main__":
    main(sys.argv[1])
