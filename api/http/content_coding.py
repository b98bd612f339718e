"""Decompress request bodies, with a limit on what comes out.

A body is one gzip member or one zstd frame, as clients send it. A chain of codings is refused: only bombs are
compressed twice.
"""

import asyncio
import zlib
from typing import Any

from api.errors import BodyTooLarge, InvalidRequest, UnknownCoding

_GZIP_BITS = 31  # zlib's number for gzip's header and its largest window
_ZSTD_WINDOW_LOG = (
    23  # 8 MiB, the most that RFC 9659 allows over HTTP; a frame could ask for 128 MiB and more
)
_READ = {"gzip": "gzip", "x-gzip": "gzip", "zstd": "zstd"}
_PLAIN = ("", "identity")


async def decoded(body: bytes, coding: str, most: int) -> bytes:
    """Return the body without its compression.

    coding: the header's value. most: bytes that may come out; no more than one further byte is made.
    Raises: UnknownCoding, BodyTooLarge, InvalidRequest if the body is not what `coding` says.
    """
    name = coding.strip().lower()
    if name in _PLAIN:
        return body
    if name not in _READ:
        raise UnknownCoding(f"The body's Content-Encoding is {coding[:100]!r}; gzip and zstd are read here.")
    # A megabyte of empty blocks takes 80 ms and makes nothing: not on the event loop.
    return await asyncio.to_thread(_decompress, body, _READ[name], most)


def _decompress(body: bytes, coding: str, most: int) -> bytes:
    decompressor, failure = _decompressor(coding)
    try:
        made: bytes = decompressor.decompress(body, most + 1)
    except failure as error:
        raise InvalidRequest(f"The body is not valid {coding}: {error}.") from None
    if len(made) > most:
        raise BodyTooLarge(f"The body is larger than {most} bytes once it is decompressed.")
    if not decompressor.eof:
        raise InvalidRequest(f"The body is not valid {coding}: its end is missing.")
    if decompressor.unused_data:
        raise InvalidRequest(f"The body is not valid {coding}: more follows its end.")
    return made


def _decompressor(coding: str) -> tuple[Any, type[Exception]]:
    """Return an object with zlib's and zstd's common methods, and what it raises."""
    if coding == "gzip":
        return zlib.decompressobj(_GZIP_BITS), zlib.error
    from backports import zstd  # Python 3.14 has it as compression.zstd; few clients send it

    options = {int(zstd.DecompressionParameter.window_log_max): _ZSTD_WINDOW_LOG}
    return zstd.ZstdDecompressor(options=options), zstd.ZstdError
