"""Training runs: data, the jitted step, the loop, the run folder, the command."""
