"""Numbers that were none, in the report: what the log says of them is shown, not smoothed over."""

import html

from train.reporting.history import Run, is_number

COUNTS = ("without_loss", "skipped", "rewinds", "spikes")
MOST = 20  # records that are listed of each phase


def counted(run: Run, phase: str) -> dict[str, int]:
    """How many steps of a phase have no loss, and what became of those that were refused."""
    watched = run.of(phase, "watch")
    return {
        "without_loss": sum(not is_number(r.get("loss")) for r in run.of(phase, "train")),
        "skipped": sum(r.get("policy") == "skip" for r in watched),
        "rewinds": max((r["rewinds"] for r in watched if is_number(r.get("rewinds"))), default=0),
        "spikes": sum(r.get("fault") == "spike" for r in watched),
    }


def section(run: Run) -> list[str]:
    """What became of steps whose loss or gradient was no number or far off, and which steps have no loss."""
    done = {"log": "noted only", "skip": "the update was skipped", "stop": "the run stopped", "rewind": "rewound"}
    items = []
    for phase in run.phases:
        lost = counted(run, phase)["without_loss"]
        if lost:
            items.append(
                f"<li><b>{html.escape(phase)}</b>: {lost:,} of {len(run.of(phase, 'train')):,} steps have no loss</li>"
            )
        watched = run.of(phase, "watch")
        for record in watched[:MOST]:
            text = f"{record.get('reason', '')}; {done.get(str(record.get('policy')), '')}"
            if is_number(record.get("at")):
                text += f" from step {record['at']:,}"
            items.append(f"<li>phase {html.escape(phase)}, step {record['step']:,}: {html.escape(text)}</li>")
        if len(watched) > MOST:
            items.append(f"<li>phase {html.escape(phase)}: {len(watched) - MOST:,} more, in the log</li>")
    if not items:
        return []
    title = "Losses and gradients that are no numbers, or far off"
    return [f'<section class="signs"><h2>{title}</h2>', "<ul>", *items, "</ul></section>"]
