"""What the shapes of all models must be made of: whole numbers from 1 on."""


def check_sizes(owner: str, **sizes: int) -> None:
    """ValueError where one of the sizes is no positive whole number."""
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"{owner}: {name} must be a positive whole number, got {size!r}.")


def check_each(owner: str, **sizes: tuple[int, ...]) -> None:
    """ValueError where one of them is no tuple of positive whole numbers."""
    for name, each in sizes.items():
        if not isinstance(each, tuple):
            raise ValueError(f"{owner}: {name} must be a tuple of whole numbers, got {each!r}.")
        check_sizes(owner, **{f"{name}[{k}]": size for k, size in enumerate(each)})
