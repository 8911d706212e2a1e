"""The settings of fine-tuning: where training starts, and what of the network is trained."""

import math
from dataclasses import dataclass

from jaxprop.train.errors import TrainingError


@dataclass(frozen=True)
class Tuning:
    """Fine-tuning: where training starts, and what of the network is trained."""

    start: str = ""
    """Start from the weights in this folder: of a run of train.py text, or one with config.json,
    safetensors and tokenizer.json. The network is the one that is there."""
    freeze: tuple[str, ...] = ()
    """Parameters that are not trained, as globs on their paths: embedding 'blocks/*/norm*'."""
    freeze_blocks: int = 0
    """So many of the first blocks are not trained, nor the tables below them."""
    adapter_rank: int = 0
    """Train adapters of this rank beside matrices of the blocks, and nothing else; 0 for none."""
    adapter_alpha: float = 16.0
    """An adapter counts alpha / rank times; above 0."""
    adapt: tuple[str, ...] = ("blocks/attention/*",)
    """Matrices that have adapters, as globs on their paths."""

    def __post_init__(self) -> None:
        for name in ("freeze_blocks", "adapter_rank"):
            if getattr(self, name) < 0:
                flag = name.replace("_", "-")
                raise TrainingError(f"--{flag} must be at least 0, got {getattr(self, name)}.")
        if not (math.isfinite(self.adapter_alpha) and self.adapter_alpha > 0):
            raise TrainingError(
                f"--adapter-alpha must be finite and above 0, got {self.adapter_alpha}."
            )
        if self.adapter_rank and self.freeze:
            raise TrainingError(
                "--adapter-rank trains nothing but adapters, got --freeze "
                f"{' '.join(self.freeze)} too. Leave one of them out."
            )
