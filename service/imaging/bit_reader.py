"""The bits of a header, one behind the other."""

_MOST_ZEROS = 32


class Bits:
    """Bits from the first on; behind the last they are 0."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data, "big")
        self._left = 8 * len(data)

    def read(self, count: int = 1) -> int:
        """Read so many bits as a whole number."""
        self._left -= count
        shifted = self._value >> self._left if self._left >= 0 else self._value << -self._left
        return shifted & ((1 << count) - 1)

    def read_number(self) -> int:
        """Read a whole number as long as the zeros before it say (Exp-Golomb)."""
        zeros = 0
        while zeros < _MOST_ZEROS and not self.read():
            zeros += 1
        return (1 << zeros) - 1 + self.read(zeros)
