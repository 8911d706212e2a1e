"""What stops a training run with one line instead of a traceback."""


class TrainingError(ValueError):
    """A mistake in a run's input, or a run that cannot go on; the message says the remedy."""

    def __init__(self, message: str) -> None:
        super().__init__(f"train: {message}")
