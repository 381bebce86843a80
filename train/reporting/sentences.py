"""Results of a phase in sentences, for the console."""

from typing import Any

import numpy as np


def describe_exchange(name: str, losses: dict[str, list[float]]) -> str:
    """The exchange test in a sentence."""
    normal, exchanged = np.array(losses["normal"]), np.array(losses["exchanged"])
    difference = exchanged - normal
    return (
        f"{name}: exchanging the choices among tokens changes the loss from {normal.mean():.4f} to "
        f"{exchanged.mean():.4f} nats/token: {difference.mean():+.4f}, standard deviation {difference.std(ddof=1):.4f} "
        f"over {len(normal)} seeds (of the loss itself: {normal.std(ddof=1):.4f})"
    )


def describe_routing(side: str, summary: dict[str, Any], skip: bool) -> str:
    """A side's routing in a sentence."""
    usage = np.mean(summary["usage"], 0)
    names = [str(i) for i in range(len(usage))]
    if skip:
        names[-1] = "SKIP"
    shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in zip(names, usage, strict=True))
    dropped = f", dropped for want of room {100 * summary['dropped']:.1f} %" if summary["dropped"] else ""
    # Logs of earlier versions do not have it.
    more = summary.get("further_rounds", 0)
    waited = f", {more:,.0f} further rounds of exchange along the mesh's `module` axis" if more else ""
    return f"{side} router: entropy {np.mean(summary['entropy']):.3f} nats, usage {shares}{dropped}{waited}"
