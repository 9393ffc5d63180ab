"""Read a header bit by bit."""

_MAX_ZEROS = 32


class BitReader:
    """A bit stream, most significant bit first; past its end all bits are 0."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data, "big")
        self._left = 8 * len(data)

    def read(self, count: int = 1) -> int:
        """Read an unsigned integer of `count` bits."""
        self._left -= count
        shifted = self._value >> self._left if self._left >= 0 else self._value << -self._left
        return shifted & ((1 << count) - 1)

    def read_number(self) -> int:
        """Read an unsigned Exp-Golomb number."""
        zeros = 0
        while zeros < _MAX_ZEROS and not self.read():
            zeros += 1
        return (1 << zeros) - 1 + self.read(zeros)
