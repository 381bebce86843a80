"""Studies: arms and seeds from one file, their runs, and what they say side by side."""
