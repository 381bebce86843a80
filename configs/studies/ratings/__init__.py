"""Studies whose runs are fine-tuned on texts with human ratings."""
