"""A campaign of faults: each is done to a run in progress, the same command is given again, and the end is compared."""
