"""The log of a run: what survives a kill and a resume, and what TensorBoard sees."""

import json
import math
import os

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from mom_jax.fields import ConfigError
from train.reporting.metrics import MetricsLog, read

PHASES = ["pretrain", "mom", "tune"]


def record(phase, step, **fields):
    return {"kind": "train", "phase": phase, "step": step, **fields}


def write(folder, records):
    with MetricsLog(folder) as log:
        for item in records:
            log.write(item)
    return folder / "metrics.jsonl"


def file_and_size(status):
    return status.st_ino, status.st_size


def points(path):
    return [(r["phase"], r["step"]) for r in read(path)]


def events(folder):
    """All events of the folder's files, in the order in which TensorBoard reads them."""
    found = []
    for path in sorted((folder / "tensorboard").iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):  # TFRecord: length (8 bytes), its checksum (4), the data, their checksum (4).
            length = int.from_bytes(data[at : at + 8], "little")
            found.append(Event.FromString(data[at + 12 : at + 12 + length]))
            at += 12 + length + 4
    return found


def scalars(folder):
    return {(v.tag, e.step): v.simple_value for e in events(folder) for v in e.summary.value}


def test_records_come_back_as_written(tmp_path):
    records = [
        record("pretrain", 1, loss=2.5),
        {"kind": "final", "phase": "mom", "step": 3, "sample": "line\n\u2028<é>"},
    ]
    assert read(write(tmp_path / "new" / "run", records)) == records


def test_arrays_become_numbers_and_unknown_values_null(tmp_path):
    values = {
        "loss": float("nan"),
        "total": np.float32(np.inf),
        "grad_norm": jnp.float32(0.5),
        "usage": np.array([[0.25, np.nan]], np.float32),
        "count": np.int64(3),
        "entropy": (1.0, -math.inf),
    }
    path = write(tmp_path, [record("mom", 1, **values), record("mom", 2)])

    def refuse(constant):
        raise AssertionError(f"not JSON: {constant}")

    first = json.loads(path.read_text().splitlines()[0], parse_constant=refuse)
    want = {
        "loss": None,
        "loss_reason": "nan",
        "total": None,
        "total_reason": "inf",
        "grad_norm": 0.5,
        "usage": [[0.25, None]],
        "count": 3,
        "entropy": [1.0, None],
    }
    assert first == record("mom", 1, **want)
    assert points(path) == [("mom", 1), ("mom", 2)]


def test_lines_are_there_at_once_and_on_disk_after_flush(tmp_path, monkeypatch):
    synced = []  # (file, size); TensorBoard's writer syncs its own file whenever it likes
    monkeypatch.setattr("os.fsync", lambda descriptor: synced.append(file_and_size(os.fstat(descriptor))))
    with MetricsLog(tmp_path) as log:
        log.flush()
        log.write(record("pretrain", 1))
        assert points(tmp_path / "metrics.jsonl") == [("pretrain", 1)]
        whole = file_and_size((tmp_path / "metrics.jsonl").stat())
        assert whole not in synced
        log.flush()
        assert whole in synced


def test_truncate_keeps_earlier_phases_and_steps_only(tmp_path):
    records = [record(phase, step) for phase in PHASES for step in (1, 2, 3)]
    records.insert(5, {"kind": "validation", "phase": "mom", "step": 2, "loss": 1.0})
    records += [{"kind": "note"}, record("renamed", 9)]
    path = write(tmp_path, records)
    MetricsLog(tmp_path).truncate(PHASES, "mom", 2)
    kept = [r for r in records if r.get("phase") != "tune" and not (r.get("phase") == "mom" and r["step"] == 3)]
    assert read(path) == kept
    assert {p.name for p in tmp_path.iterdir()} == {"metrics.jsonl", "tensorboard"}


def test_truncate_to_the_start_of_a_phase_and_writing_on(tmp_path):
    path = write(tmp_path, [record("pretrain", 5), record("mom", 1)])
    with MetricsLog(tmp_path) as log:
        log.truncate(PHASES, "mom", 0)
        log.write(record("mom", 1, loss=1.0))
        log.truncate(PHASES, "mom", 1)
        log.write(record("mom", 2))
    assert points(path) == [("pretrain", 5), ("mom", 1), ("mom", 2)]


@pytest.mark.parametrize("tail", [b'{"kind": "train", "phase": "mom", "st', b"\xc3", b"\0\0\0", b'"mom"'])
def test_a_half_written_last_line_is_dropped(tmp_path, tail):
    path = write(tmp_path, [record("mom", 1), record("mom", 2)])
    whole = path.read_bytes()
    path.write_bytes(whole + tail)
    assert points(path) == [("mom", 1), ("mom", 2)]
    MetricsLog(tmp_path).truncate(PHASES, "mom", 7)
    assert path.read_bytes() == whole
    path.write_bytes(whole + tail)
    write(tmp_path, [record("mom", 3)])
    assert points(path) == [("mom", 1), ("mom", 2), ("mom", 3)]


def test_a_last_line_that_only_lacks_its_end_is_kept(tmp_path):
    path = write(tmp_path, [record("mom", 1), record("mom", 2)])
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    write(tmp_path, [record("mom", 3)])
    assert points(path) == [("mom", 1), ("mom", 2), ("mom", 3)]


def test_every_change_of_a_final_record_is_noticed(tmp_path):
    final = {"kind": "final", "phase": "mom", "step": 2, "loss": 4.25, "perplexity": 70.0, "tokens": 100}
    path = write(tmp_path, [record("mom", 1), record("mom", 2), final])
    whole = path.read_bytes()
    assert read(path)[-1] == final  # its checksum is the file's own matter
    begin = whole[:-1].rindex(b"\n") + 1
    for place in range(begin, len(whole) - 1):
        changed = bytearray(whole)
        changed[place] ^= 1 << place % 7
        path.write_bytes(changed)
        with pytest.raises(ConfigError, match=r"line [34]: "):
            read(path)
        if changed.count(b"\n") == whole.count(b"\n"):
            [told] = MetricsLog(tmp_path).truncate(PHASES, "mom", 2)
            assert ", line 3: " in told
            assert path.read_bytes() == whole[:begin]
    # One of an older version has no checksum.
    path.write_bytes(whole[:begin] + json.dumps(final).encode() + b"\n")
    assert read(path)[-1] == final


def test_a_last_line_that_is_whole_and_no_record_is_noticed(tmp_path):
    path = write(tmp_path, [record("mom", 1)])
    whole = path.read_bytes()
    path.write_bytes(whole + b"{broken\n")
    with pytest.raises(ConfigError, match="line 2: must be a JSON object"):
        read(path)
    assert len(MetricsLog(tmp_path).truncate(PHASES, "mom", 2)) == 1
    assert path.read_bytes() == whole


def test_damage_in_the_middle_is_named_and_left_alone(tmp_path):
    path = write(tmp_path, [record("mom", 1)])
    path.write_bytes(b"{broken\n" + path.read_bytes())
    damaged = path.read_bytes()
    with pytest.raises(ConfigError, match="line 1: must be a JSON object"):
        read(path)
    with pytest.raises(ConfigError, match="line 1"):
        MetricsLog(tmp_path).truncate(PHASES, "mom", 0)
    assert path.read_bytes() == damaged


def test_a_pipe_in_the_log_s_place_is_refused_at_once(tmp_path):
    path = write(tmp_path, [record("mom", 1)])
    with MetricsLog(tmp_path) as log:
        mark = log.mark()
    assert mark.fits(path)
    path.unlink()
    os.mkfifo(path)
    assert not mark.fits(path)
    with pytest.raises(ConfigError, match=r"cannot be read \(no regular file\)"):
        MetricsLog(tmp_path).truncate(PHASES, "mom", 1)


def test_truncating_what_is_not_there(tmp_path):
    MetricsLog(tmp_path).truncate(PHASES, "mom", 3)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="'mum'"):
        MetricsLog(tmp_path).truncate(PHASES, "mum", 3)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "metrics.jsonl")


def test_tensorboard_tags_means_and_steps(tmp_path):
    side = {"entropy": [1.0, 2.0], "usage": [[0.5, 0.5], [1.0, 0.0]], "skip": 0.25}
    with MetricsLog(tmp_path) as log:
        log.write(record("pretrain", 4, loss=3.0, total=float("nan")))
        log.write(record("mom", 1, loss=2.0, routers={"attention": side}), offset=10)
        log.write({"kind": "validation", "phase": "mom", "step": 2, "loss": 1.5}, offset=10)
        log.write({"kind": "final", "phase": "mom", "step": 2, "exchanged": {"normal": [1.0, 3.0]}, "sample": "x"})
    assert scalars(tmp_path) == {
        ("pretrain/loss", 4): 3.0,
        ("mom/loss", 11): 2.0,
        ("mom/attention/entropy", 11): 1.5,
        ("mom/attention/skip", 11): 0.25,
        ("mom/validation/loss", 12): 1.5,
        ("mom/final/exchanged/normal", 2): 2.0,
    }


def test_a_resume_hides_repeated_steps_from_tensorboard(tmp_path):
    write(tmp_path, [record("mom", step) | {"loss": 1.0} for step in (1, 2, 3)])
    with MetricsLog(tmp_path) as log:
        log.truncate(PHASES, "mom", 1, offset=10)
        log.write(record("mom", 2, loss=2.0), offset=10)
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2
    starts = [e.step for e in events(tmp_path) if e.session_log.status == SessionLog.START]
    # TensorBoard hides events from this step on that come before the mark: step 11 = 10 + 1 is the last one kept.
    assert starts == [12]


def test_signs_are_points_and_texts_and_listeners_hear_of_all(tmp_path):
    heard = []
    with MetricsLog(tmp_path) as log:
        log.listeners.append(heard.append)
        for side in ("ffn", None):
            log.write(
                {"kind": "sign", "phase": "mom", "step": 3, "sign": "skip", "side": side, "text": "SKIP"}, offset=7
            )
        log.write(record("mom", 4, loss=np.float32(0.5)))
        assert log.records("mom") == heard == read(tmp_path / "metrics.jsonl")
        assert log.records("tune") == []
    assert heard[-1] == record("mom", 4, loss=0.5)
    found = [(e.step, v) for e in events(tmp_path) for v in e.summary.value]
    points = {v.tag: v.simple_value for step, v in found if step == 10 and not v.HasField("tensor")}
    assert points == {"mom/sign/skip/ffn": 1, "mom/sign/skip": 1}
    assert [v.tensor.string_val for _, v in found if v.HasField("tensor")] == [[b"SKIP"]] * 2
    silent = MetricsLog(tmp_path, write=False)
    silent.listeners.append(heard.clear)
    silent.write(record("mom", 5))
    assert silent.records("mom") == []
    assert len(heard) == 3
