"""The routing explorer: a text whose tokens show their paths, drawn by a page that needs nothing else."""

from mom_jax.analysis.explorer.data import explorer_data, is_explorer_data, same_text
from mom_jax.analysis.explorer.page import POLICY, Explorer, fragment

__all__ = ["POLICY", "Explorer", "explorer_data", "fragment", "is_explorer_data", "same_text"]
