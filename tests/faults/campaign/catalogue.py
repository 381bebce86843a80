"""All jobs of the campaign, in their order."""

from collections.abc import Callable

from campaign.faults import disks, kills, losses, models, odd_things, pairs, run_files, sharing
from campaign.nursery import Nursery
from campaign.outcomes import Job


def jobs(nursery: Callable[[], Nursery]) -> list[Job]:
    return [
        *kills.jobs(nursery),
        *pairs.jobs(nursery),
        *run_files.jobs(),
        *odd_things.jobs(),
        *models.jobs(),
        *disks.jobs(),
        *losses.jobs(),
        *sharing.jobs(nursery),
    ]
