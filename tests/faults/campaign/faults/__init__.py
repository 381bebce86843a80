"""The faults, a file for each sort."""
