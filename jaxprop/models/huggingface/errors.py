"""What is wrong with a checkpoint."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or written; the message says which file and tensor."""

    def __init__(self, message: str) -> None:
        super().__init__(f"huggingface: {message}")
