"""A plan in words and as JSON: what fits, by how much, and what to change."""

import dataclasses
from typing import Any

from rich.table import Table

from mom_jax.sharding import describe_mesh
from train.config import Config, Phase
from train.planning.program import Program
from train.planning.roofline import Estimate
from train.reporting.progress import duration


def verdict(config: Config, phase: Phase, program: Program) -> str:
    """Whether the program fits into the chip's memory, and if not, what to change."""
    memory = program.memory
    room = memory.capacity - memory.peak
    if room >= 0:
        return f"fits: {room / 2**30:.1f} GiB of {memory.capacity / 2**30:.1f} GiB are left"
    return f"does not fit: {-room / 2**30:.1f} GiB too much; {'; or '.join(remedies(config, phase, program))}"


def remedies(config: Config, phase: Phase, program: Program) -> list[str]:
    """Flags that need less memory, the mildest first."""
    memory, mesh = program.memory, program.mesh
    state, own = memory.parameters + memory.optimizer, config.data.batch_size // program.chips
    index = [row.name for row in config.phases].index(phase.name)
    found = []
    if mesh["data"] > 1:
        found.append(f"divide the parameters further (--mesh.fsdp {mesh['fsdp'] * mesh['data']} --mesh.data 1)")
    parts = phase.optim.accumulation
    if state < memory.capacity and own > parts:
        more = next(p for p in range(parts + 1, own + 1) if own % p == 0)
        found.append(f"take smaller micro-batches (--phases.{index}.optim.accumulation {more}, up to {own})")
    if config.model.remat != "full":
        found.append("compute more again (--model.remat full)")
    return [*found, "take more chips, or chips with more memory"]


def record(config: Config, phase: Phase, program: Program, estimate: Estimate | None) -> dict[str, Any]:
    """For JSON. Bytes and FLOPs are per chip and step, times in seconds."""
    return {
        "phase": phase.name,
        "mesh": program.mesh,
        "chips": program.chips,
        "device": dataclasses.asdict(program.device),
        "batch_size": config.data.batch_size,
        "length": config.data.length,
        "accumulation": phase.optim.accumulation,
        "fits": program.memory.fits,
        "verdict": verdict(config, phase, program),
        "memory_bytes": dataclasses.asdict(program.memory),
        "flops": program.flops,
        "product_bytes": program.product_bytes,
        "sent_bytes": program.sent,
        "sent_bytes_in_loops": program.sent_in_loops,
        "sent_bytes_across_servers": program.sent_across,
        "not_counted": list(program.uncounted),
        "compile_cpu_seconds": round(program.compile_seconds, 1),
        "estimate": None if estimate is None else _estimate(estimate, program),
    }


def choice(records: list[dict[str, Any]]) -> str:
    """Why the first of the plans is the one to take, in a sentence; they are in order."""
    best, *others = records
    name, estimate = describe_mesh(best["mesh"]), best["estimate"]
    if not best["fits"] or estimate is None:
        return f"{name}, and it {best['verdict']}"
    said = f"{name}: {_times(estimate)}, and it {best['verdict']}"
    fitting = [other for other in others if other["fits"] and other["estimate"]]
    if not fitting:
        return said + ("; no other that was compiled fits" if others else "")
    other = fitting[0]
    saved = {part: other["estimate"][part] - estimate[part] for part in ("products", "memory", "communication")}
    most = max(saved, key=lambda part: saved[part])
    words = {"products": "in products", "memory": "in moving memory", "communication": "in communication"}[most]
    more = f"{1000 * saved[most]:,.0f} ms more {words}"
    return f"{said}; the next, {describe_mesh(other['mesh'])}, spends {more} ({_times(other['estimate'])})"


def _times(estimate: dict[str, Any]) -> str:
    return f"{1000 * estimate['step_best']:,.0f} to {1000 * estimate['step_worst']:,.0f} ms a step"


def _estimate(estimate: Estimate, program: Program) -> dict[str, Any]:
    values = dataclasses.asdict(estimate)
    chip_hours = {"chip_hours_best": estimate.hours_best * program.chips}
    chip_hours["chip_hours_worst"] = estimate.hours_worst * program.chips
    return {**values, "step_best": estimate.best, "step_worst": estimate.worst, **chip_hours}


def _gib(size: int | None) -> str:
    return "?" if size is None else f"{size / 2**30:.2f} GiB"


def table(config: Config, phase: Phase, program: Program, estimate: Estimate | None) -> Table:
    """Everything for one mesh."""
    title = f"{phase.name} on {program.chips} x {program.device.name}: {describe_mesh(program.mesh)}"
    result = Table(title=title, title_justify="left", show_header=False)
    memory = program.memory
    rows = [
        ("each chip's parameters", _gib(memory.parameters)),
        ("each chip's optimizer state", _gib(memory.optimizer)),
        ("each chip's activations, gradients and gathered parameters", _gib(memory.activations)),
        ("each chip's memory at its peak", f"{_gib(memory.peak)} of {_gib(memory.capacity)}"),
        ("verdict", verdict(config, phase, program)),
    ]
    if program.flops is not None and program.product_bytes is not None and estimate is not None:
        rows += [
            ("FLOPs of products, each chip and step", f"{program.flops / 1e12:.2f} TFLOP"),
            ("bytes of their operands and results", f"{program.product_bytes / 1e9:.1f} GB"),
        ]
        for kind, size in program.sent.items():
            inner = program.sent_in_loops.get(kind, 0)
            rows.append((f"sent by {kind}", f"{size / 1e9:.3f} GB, {inner / 1e9:.3f} GB of it in loops"))
        if program.sent_across:
            rows.append(("sent by each adapter to other servers", f"{program.sent_across / 1e9:.3f} GB"))
        times = {"products": estimate.products, "memory": estimate.memory, "communication": estimate.communication}
        rows.append(("time at least", ", ".join(f"{name} {1e3 * t:.1f} ms" for name, t in times.items())))
        for name, seconds, mfu, hours in (
            ("overlapped", estimate.best, estimate.mfu_best, estimate.hours_best),
            ("one after the other", estimate.worst, estimate.mfu_worst, estimate.hours_worst),
        ):
            text = f"{1e3 * seconds:.1f} ms a step, MFU {100 * mfu:.1f} %; {phase.steps:,} steps: "
            text += f"{duration(3600 * hours)}, {hours * program.chips:,.1f} chip-hours"
            rows.append((name, text))
    if program.uncounted:
        rows.append(("not counted", ", ".join(program.uncounted)))
    for row in rows:
        result.add_row(*row)
    return result
