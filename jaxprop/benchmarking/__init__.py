"""Time and memory of hand-written backward passes against what else there is."""
