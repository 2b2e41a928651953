"""The files routes: uploads are measured and thrown away, downloads are made up byte by byte."""

from __future__ import annotations

import re
import time
from collections import OrderedDict
from typing import Any

from proxy.mock.answer import ANTHROPIC, MISTRAL, Answer, Call, answer_json
from proxy.mock.multipart import MultipartCounter
from proxy.mock.refusal import RefusedError

MAX_FILES = 1000
MAX_DOWNLOAD_BYTES = 1 << 40
_SIZED = re.compile(r"file-(\d{1,13})")


class StoredFile:
    """What is remembered of an upload."""

    __slots__ = ("created", "file_id", "filename", "purpose", "size_bytes")

    def __init__(self, file_id: str, filename: str, purpose: str, size_bytes: int, created: int) -> None:
        self.file_id = file_id
        self.filename = filename
        self.purpose = purpose
        self.size_bytes = size_bytes
        self.created = created

    def describe(self, dialect: str) -> dict[str, Any]:
        """The vendor's file object."""
        if dialect == ANTHROPIC:
            moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.created))
            return {
                "type": "file",
                "id": self.file_id,
                "filename": self.filename,
                "mime_type": "application/octet-stream",
                "size_bytes": self.size_bytes,
                "created_at": moment,
                "downloadable": True,
            }
        value: dict[str, Any] = {
            "id": self.file_id,
            "object": "file",
            "bytes": self.size_bytes,
            "created_at": self.created,
            "filename": self.filename,
            "purpose": self.purpose,
        }
        if dialect == MISTRAL:
            return {**value, "sample_type": "instruct", "source": "upload", "deleted": False}
        return {**value, "status": "processed", "expires_at": None, "status_details": None}


class Files:
    """The files of one mock; the oldest are forgotten beyond ``MAX_FILES``.

    An id that says a size, such as ``file-10485760``, is always there and has that many bytes.
    """

    # The mutable state: _files maps id -> upload, oldest first. Only this class writes it.
    __slots__ = ("_files",)

    def __init__(self) -> None:
        self._files: OrderedDict[str, StoredFile] = OrderedDict()

    def create(self, call: Call, upload: MultipartCounter | None) -> Answer:
        """``POST /v1/files``."""
        if upload is None:
            raise RefusedError(400, "The body must be multipart/form-data.")
        if upload.broken or not upload.ended:
            raise RefusedError(400, f"The body is no whole multipart body: {upload.broken or 'its end is missing'}.")
        part, purpose = upload.find("file"), upload.find("purpose")
        if part is None:
            raise RefusedError(400, "Missing required parameter: 'file'.", param="file")
        stored = StoredFile(
            call.make_serial_id("file_" if call.dialect == ANTHROPIC else "file-mock"),
            part.filename or "upload",
            purpose.value.decode("utf-8", "replace") if purpose else "user_data",
            part.size_bytes,
            int(time.time()),
        )
        self._files[stored.file_id] = stored
        if len(self._files) > MAX_FILES:
            self._files.popitem(last=False)
        return answer_json(stored.describe(call.dialect))

    def list_all(self, call: Call) -> Answer:
        """``GET /v1/files``, newest first, one page."""
        data = [stored.describe(call.dialect) for stored in reversed(self._files.values())]
        ends = {"first_id": data[0]["id"] if data else None, "last_id": data[-1]["id"] if data else None}
        if call.dialect == MISTRAL:
            return answer_json({"object": "list", "data": data, "total": len(data)})
        value = {"data": data, "has_more": False, **ends}
        return answer_json(value if call.dialect == ANTHROPIC else {"object": "list", **value})

    def read(self, call: Call, file_id: str) -> Answer:
        """``GET /v1/files/{id}``."""
        return answer_json(self._find(file_id).describe(call.dialect))

    def download(self, file_id: str) -> Answer:
        """``GET /v1/files/{id}/content``."""
        stored = self._find(file_id)
        name = stored.filename.replace('"', "").encode("ascii", "replace")
        disposition = (b"content-disposition", b'attachment; filename="%b"' % name)
        return Answer(content_type=b"application/octet-stream", bulk_bytes=stored.size_bytes, headers=(disposition,))

    def delete(self, call: Call, file_id: str) -> Answer:
        """``DELETE /v1/files/{id}``."""
        self._find(file_id)
        self._files.pop(file_id, None)
        if call.dialect == ANTHROPIC:
            return answer_json({"id": file_id, "type": "file_deleted"})
        return answer_json({"id": file_id, "object": "file", "deleted": True})

    def _find(self, file_id: str) -> StoredFile:
        stored = self._files.get(file_id)
        if stored is not None:
            return stored
        sized = _SIZED.fullmatch(file_id)
        if sized is None or int(sized[1]) > MAX_DOWNLOAD_BYTES:
            raise RefusedError(404, f"No such File object: {file_id}", param="id")
        return StoredFile(file_id, f"{file_id}.bin", "user_data", int(sized[1]), 1_767_225_600)
