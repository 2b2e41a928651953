"""Images and documents between ``data:`` URLs, plain URLs and separate members."""

from __future__ import annotations

import base64
import binascii
from typing import Final

from proxy.protocol.conversation import Media
from proxy.providers.base import refuse

_TYPES: Final = {
    "gif": "image/gif",
    "jpeg": "image/jpeg",
    "jpg": "image/jpeg",
    "pdf": "application/pdf",
    "png": "image/png",
    "txt": "text/plain",
    "webp": "image/webp",
}


def media_of_url(kind: str, url: str, at: str) -> Media:
    """A block from a URL; the contents, where it is a ``data:`` URL in base64. Raises ``ProxyError``."""
    if url[:5].lower() == "data:":
        head, comma, data = url[5:].partition(",")
        media_type, _, encoding = head.partition(";")
        if not comma or not encoding.endswith("base64"):
            raise refuse(at, "must be a data URL in base64, or a URL of the web")
        return Media(kind, media_type.lower(), data)
    if url[:8].lower() == "https://" or url[:7].lower() == "http://":
        return Media(kind, _TYPES.get(url.partition("?")[0].rpartition(".")[2].lower(), ""), url=url)
    raise refuse(at, "must be a data URL in base64, or a URL of the web")


def url_of_media(block: Media) -> str:
    """The URL of a block that has contents or a URL; contents become a ``data:`` URL."""
    return block.url or f"data:{block.media_type};base64,{block.data}"


def text_of_media(block: Media, at: str) -> str:
    """The text of a document in base64 that is plain text. Raises ``ProxyError``."""
    try:
        return base64.b64decode(block.data, validate=True).decode("utf-8")
    except (binascii.Error, UnicodeDecodeError):
        raise refuse(at, "is not plain text in base64") from None
