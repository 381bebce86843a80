"""What checkpoints are evaluated on."""
