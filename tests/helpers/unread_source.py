"""A source of images that a test only counts."""

from glide_jax.data.records import Record


class UnreadSource:
    """A source whose records cannot be read."""

    def __init__(self, images: int) -> None:
        self._images = images

    def __len__(self) -> int:
        return self._images

    def __getitem__(self, index: int) -> Record:
        raise AssertionError(index)

    def captions(self, index: int) -> tuple[str, ...]:
        raise AssertionError(index)
