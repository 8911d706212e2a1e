"""What stops a training run with one line instead of a traceback."""


class TrainingError(Exception):
    """A mistake in a run's input, or a run that cannot go on; the message says the remedy.

    Not a ValueError, which parsers of command lines catch and say again in words of their own.
    """

    def __init__(self, message: str) -> None:
        super().__init__(f"train: {message}")
