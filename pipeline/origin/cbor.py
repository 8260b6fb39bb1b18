"""A reader of CBOR (RFC 8949) for data of anybody's making: bounded in depth and number of items.

It knows numbers, text, bytes, arrays, maps, true, false and null. Tags are passed over, for none of
them changes what is read here; what a library would make of them (dates, regular expressions,
shared values) is nothing that a stranger's file should choose.
"""

import struct

_DEEPEST = 16
_MOST_ITEMS = 20_000
_BREAK = object()
_FLOATS = {25: ">e", 26: ">f", 27: ">d"}
_SIMPLE = {20: False, 21: True, 22: None, 23: None}


def decode(data: bytes) -> object:
    """The first item in the data. Raises ValueError where it is cut short, malformed, or too deep
    or too large to be what is expected here."""
    return _Reader(data).item(_DEEPEST)


class _Reader:
    def __init__(self, data: bytes):
        self._data = data
        self._position = 0
        self._items = 0

    def item(self, depth: int, may_break: bool = False) -> object:
        self._items += 1
        if depth == 0 or self._items > _MOST_ITEMS:
            raise ValueError("CBOR that is too deep or too large")
        first = self._take(1)[0]
        kind, info = first >> 5, first & 31
        if kind == 7:
            return self._simple(info, may_break)
        if kind == 6:
            self._number(info)
            return self.item(depth - 1)
        endless = info == 31 and kind in (2, 3, 4, 5)
        number = None if endless else self._number(info)
        if kind in (0, 1):
            return -1 - number if kind else number
        if kind in (2, 3):
            whole = b"".join(self._chunks(kind)) if endless else self._take(number)
            return whole if kind == 2 else whole.decode("utf-8", "replace")
        if kind == 4:
            return self._array(number, depth)
        return self._map(number, depth)

    def _array(self, number: int | None, depth: int) -> list:
        items: list[object] = []
        while number is None or len(items) < number:
            item = self.item(depth - 1, may_break=number is None)
            if item is _BREAK:
                break
            items.append(item)
        return items

    def _map(self, number: int | None, depth: int) -> dict:
        """Those entries whose key is text; there are no others in a manifest."""
        entries: dict[str, object] = {}
        read = 0
        while number is None or read < number:
            key = self.item(depth - 1, may_break=number is None)
            if key is _BREAK:
                break
            value = self.item(depth - 1)
            if isinstance(key, str):
                entries[key] = value
            read += 1
        return entries

    def _chunks(self, kind: int) -> list[bytes]:
        chunks = []
        while (first := self._take(1)[0]) != 0xFF:
            if first >> 5 != kind:
                raise ValueError("CBOR string with a chunk of another type")
            chunks.append(self._take(self._number(first & 31)))
        return chunks

    def _number(self, info: int) -> int:
        if info < 24:
            return info
        if info > 27:
            raise ValueError("CBOR with a reserved length")
        return int.from_bytes(self._take(1 << info - 24), "big")

    def _simple(self, info: int, may_break: bool) -> object:
        if info == 31 and may_break:
            return _BREAK
        if info in _FLOATS:
            [value] = struct.unpack(_FLOATS[info], self._take(1 << info - 24))
            return value
        if info not in _SIMPLE:
            raise ValueError("CBOR with an unknown simple value")
        return _SIMPLE[info]

    def _take(self, size: int) -> bytes:
        end = self._position + size
        if end > len(self._data):
            raise ValueError("CBOR that is cut short")
        taken = self._data[self._position : end]
        self._position = end
        return taken
