"""Weights & Biases, offline: the numbers of the log under TensorBoard's names, one run there however often it is
resumed, and training that goes on whatever fails there."""

import importlib.util
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from programs import ROOT, environment

from mom_jax.fields import ConfigError, from_dict
from train.config import Config, Phase
from train.reporting.metrics import MetricsLog, scalars
from train.reporting.services import wandb_log
from train.reporting.services.wandb_log import WandbLog, check_installed
from train.tracking import WandbConfig
from train.training import loop

wandb = pytest.importorskip("wandb", reason="needs the [wandb] extra")
PHASES = (Phase("pretrain", 10, model="vanilla"), Phase("mom", 10, init_from="previous"))
OFFSETS = {"pretrain": 0, "mom": 10}


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    """No account, no network, none of the user's settings."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")


def config(folder, mode="offline", **fields):
    return Config(phases=PHASES, run=str(folder), wandb=WandbConfig(mode, "modules", **fields))


def record(phase, step, **fields):
    return {"kind": "train", "phase": phase, "step": step, **fields}


def stored(folder):
    """Of every session of a run, in order: what was sent of the run itself, and the rows of its history."""
    from wandb.proto import wandb_internal_pb2

    sessions = []
    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        data, at, whole, rows, run = file.read_bytes(), 7, b"", [], None
        while at + 7 <= len(data):  # LevelDB's log: blocks of 32 KiB, of records with their size and kind
            if at % 2**15 > 2**15 - 7:
                at += -at % 2**15
                continue
            _, size, kind = struct.unpack("<IHB", data[at : at + 7])
            whole, at = whole + data[at + 7 : at + 7 + size], at + 7 + size
            if kind not in (1, 4):  # the whole record, or its last piece
                continue
            message, whole = wandb_internal_pb2.Record.FromString(whole), b""
            if message.WhichOneof("record_type") == "run":
                run = message.run
            elif message.WhichOneof("record_type") == "history":
                items = {item.nested_key[0]: json.loads(item.value_json) for item in message.history.item}
                rows.append({name: value for name, value in items.items() if not name.startswith("_")})
        sessions.append((run, rows))
    return sessions


def write(folder, records, said=None, **fields):
    with (
        MetricsLog(folder) as log,
        WandbLog(config(folder, **fields), log, OFFSETS, ([] if said is None else said).append),
    ):
        for item in records:
            log.write(item, offset=OFFSETS[item["phase"]])


RECORDS = [
    record("pretrain", 10, loss=2.5, grad_norm=None, routers={"ffn": {"entropy": [1.0, 2.0], "skip": 0.25}}),
    {"kind": "validation", "phase": "mom", "step": 3, "loss": 2.0},
    {"kind": "sign", "phase": "mom", "step": 3, "sign": "collapse", "side": "ffn", "text": "a text"},
]
ROWS = [
    {"pretrain/loss": 2.5, "pretrain/ffn/entropy": 1.5, "pretrain/ffn/skip": 0.25, "step": 10},
    {"mom/validation/loss": 2.0, "step": 13},
    {"mom/sign/collapse/ffn": 1.0, "step": 13},
]


def test_numbers_and_a_run_that_is_resumed(tmp_path):
    said = []
    write(tmp_path, RECORDS, said, group="seeds", tags=("a", "b"))
    write(tmp_path, [record("mom", 4, loss=1.5)], name="mine")
    [(first, rows), (second, more)] = stored(tmp_path)
    assert rows == ROWS
    assert more == [{"mom/loss": 1.5, "step": 14}]
    assert first.run_id == second.run_id == json.loads((tmp_path / "wandb.json").read_text())["id"]
    assert (first.project, first.display_name, second.display_name) == ("modules", tmp_path.name, "mine")
    assert (first.run_group, list(first.tags)) == ("seeds", ["a", "b"])
    settings = {item.key: json.loads(item.value_json) for item in first.config.update}
    assert settings["model"]["d_model"] == Config().model.d_model
    [line] = said
    assert line.startswith(f"Weights & Biases: offline, in {tmp_path}/wandb/offline-run-")
    assert [scalars(item) for item in RECORDS] == [
        {name: value for name, value in row.items() if name != "step"} for row in ROWS
    ]
    # An id that is damaged is made anew.
    (tmp_path / "wandb.json").write_text('{"id": "../x"}')
    assert wandb_log._identity(tmp_path).isalnum()


def test_off_needs_nothing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    write(tmp_path, RECORDS, mode="off")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "tensorboard"]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check_installed(WandbConfig())
    with pytest.raises(ConfigError, match=r"^wandb\.mode='online': needs wandb, which is not installed: pip install"):
        check_installed(WandbConfig("online"))


def test_what_cannot_be_reached_goes_on_offline(tmp_path):
    said = []
    write(tmp_path, RECORDS, said, mode="online")
    assert said[0].startswith("Weights & Biases has failed (UsageError: No API key configured.")
    assert said[0].endswith("; going on offline")
    assert said[1].startswith("Weights & Biases: offline, in ")
    assert [rows for _, rows in stored(tmp_path)] == [ROWS]


class _Run:
    """A run of W&B's of which something fails."""

    dir, url = "/nowhere/files", "a place"

    def __init__(self, failing):
        self.failing, self.logged = failing, []

    def define_metric(self, *arguments, **more):
        self._may_fail("define_metric")

    def log(self, row):
        self._may_fail("log")
        self.logged.append(row)

    def finish(self, exit_code):
        self._may_fail("finish")

    def _may_fail(self, what):
        if what == self.failing:
            raise RuntimeError(f"{what}\nfails")


@pytest.mark.parametrize(
    ("failing", "then", "times"),
    [
        ("define_metric", "nothing more is sent there", 1),
        ("log", "nothing more is sent there", 1),
        ("finish", "the last numbers may be missing there", 1),
        (None, None, 0),
    ],
)
def test_a_failure_is_told_once_and_stops_nothing(tmp_path, monkeypatch, failing, then, times):
    run = _Run(failing)
    monkeypatch.setattr(wandb, "init", lambda **settings: run)
    said = []
    write(tmp_path, RECORDS, said)
    told = [line for line in said if "failed" in line]
    assert told == [f"Weights & Biases has failed (RuntimeError: {failing} fails); {then}"] * times
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3
    assert len(run.logged) == (0 if failing in ("define_metric", "log") else 3)


DYING = """
import os, signal, subprocess, sys, time
from pathlib import Path
from train.config import Config
from train.reporting.metrics import MetricsLog
from train.reporting.services.wandb_log import WandbLog
from train.tracking import WandbConfig

folder, said = Path(sys.argv[1]), []
config = Config(run=str(folder), wandb=WandbConfig("offline"))
with MetricsLog(folder) as log, WandbLog(config, log, {}, said.append):
    record = {"kind": "train", "phase": "mom", "step": 1, "loss": 1.0}
    log.write(record)
    children = subprocess.run(["ps", "-o", "pid=,comm=", "--ppid", str(os.getpid())], capture_output=True, text=True)
    killed = [int(line.split()[0]) for line in children.stdout.splitlines() if "wandb" in line]
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    end = time.monotonic() + 30
    while len(said) < 2 and time.monotonic() < end:
        time.sleep(0.05)
        log.write(record)
print(len(killed), said[1:])
"""


@pytest.mark.slow
def test_their_process_may_die(tmp_path):
    """What training's process says, on both streams, is one line."""
    command = [sys.executable, "-c", DYING, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("1 ['Weights & Biases has failed (")
    assert done.stdout.endswith("; nothing more is sent there']\n")


def test_the_fields():
    assert from_dict(Config, {}).wandb == WandbConfig()
    assert from_dict(Config, {"wandb": {"mode": "offline", "tags": ["a"]}}).wandb.tags == ("a",)
    for fields, message in (
        ({"project": "a/b"}, "project='a/b'"),
        ({"mode": "on"}, "mode='on'"),
        ({"tags": ("",)}, "tags="),
    ):
        with pytest.raises(ConfigError, match=message):
            WandbConfig(**fields)


@pytest.mark.slow
@pytest.mark.usefixtures("shared_steps")
def test_a_run_stopped_and_resumed(tmp_path, monkeypatch):
    """One run there; steps after the last checkpoint are in it twice, as they were trained twice."""
    settings = tiny.config(tmp_path, wandb=WandbConfig("offline"))

    class Killed(Exception):
        pass

    original = MetricsLog.write

    def killed(self, item, *, offset=0):
        original(self, item, offset=offset)
        if (item["kind"], item["phase"], item["step"]) == ("train", "mom", 3):
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(MetricsLog, "write", killed)
        with pytest.raises(Killed):
            loop.train(settings)
    assert loop.train(settings) is None
    [(first, rows), (second, more)] = stored(Path(settings.run))
    assert first.run_id == second.run_id
    steps = [[row["step"] for row in some if any(name.endswith("/grad_norm") for name in row)] for some in (rows, more)]
    assert steps[0] == list(range(1, 10))
    assert steps[1][0] == 9
    assert (Path(settings.run) / "report.html").exists()
