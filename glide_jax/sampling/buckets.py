"""Batch sizes: few, so that the number of images seldom needs another compiled program."""


def bucket(images: int, devices: int = 1) -> int:
    """The batch size for a number of images: 1, 2, 3, 4, 6, 8, 12, 16, 24, ... for each device.

    Less than a third of each device's part is padding. One image is not spread over devices.

    Args:
        images: at least 1.
        devices: over which the batch is sharded.
    """
    if images == 1:
        return 1
    each = -(-images // devices)
    power = 2 ** (each - 1).bit_length()
    return devices * (power * 3 // 4 if power % 4 == 0 and each <= power * 3 // 4 else power)


def equal_part(images: int, limit: int) -> int:
    """The size of the fewest equal parts of at most `limit` images; the last may be smaller.

    17 images, 16 at a time, are 9 and 8 instead of 16 and 1 with 15 of padding.
    """
    return -(-images // -(-images // limit))
