"""s3fs's file system; every request is repeated after a failure that may pass.

s3fs repeats a request after broken connections, slow answers and cut bodies, and botocore once
after an answer of the kind "500 InternalError". With 1 % of such answers, one request in 10,000
would still end a run. Listings of many pages and uploads of many parts consist of many requests,
so each of them is repeated on its own.
"""

from __future__ import annotations

import asyncio
from typing import Any

from fsspec.asyn import sync_wrapper
from s3fs import S3FileSystem

from pocketclip.storage import retries


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status of the answer behind an error of s3fs; None if there was none."""
    answer = getattr(error.__cause__ or error, "response", None)
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode") if answer else None
    return status if isinstance(status, int) else None


def _code_of(error: BaseException) -> str:
    answer = getattr(error.__cause__ or error, "response", None) or {}
    return str(answer.get("Error", {}).get("Code"))


class PatientS3(S3FileSystem):  # type: ignore[misc]  # fsspec is not typed
    """The file system of S3 and of servers that speak its language."""

    _was_reached = False

    async def _call_s3(self, method: str, *args: Any, **kwargs: Any) -> Any:
        attempt = 0
        while True:
            try:
                answer = await super()._call_s3(method, *args, **kwargs)
            except Exception as error:
                if attempt + 1 >= retries.ATTEMPTS or not self._may_pass(error):
                    raise
                await asyncio.sleep(retries.pause_after(attempt))
            else:
                self._was_reached = True
                return answer
            attempt += 1

    def _may_pass(self, error: Exception) -> bool:
        # A wrong address should be reported at once; a store that was there may come back.
        refused = type(error).__name__ in ("EndpointConnectionError", "ConnectTimeoutError")
        return status_of(error) in retries.RETRY_STATUS or (refused and self._was_reached)

    async def _put_file(self, local: str, name: str, *args: Any, **kwargs: Any) -> None:
        attempt = 0
        while True:
            try:
                await super()._put_file(local, name, *args, **kwargs)
            except FileNotFoundError as error:
                # The answer to the completion of a multipart upload was lost: repeated, it finds
                # no such upload.
                if attempt + 1 >= retries.ATTEMPTS or _code_of(error) != "NoSuchUpload":
                    raise
            else:
                return
            attempt += 1

    async def _exists(self, path: str, **kwargs: Any) -> bool:
        name = self._strip_protocol(path)
        if name and "/" not in name.rstrip("/"):
            try:  # the parent takes a bucket that cannot be reached for one that is not there
                await self._info(name)
            except FileNotFoundError:
                return False
            except PermissionError:  # to ask for a bucket may need more rights than its objects
                pass
            else:
                return True
        return bool(await super()._exists(path, **kwargs))

    exists = sync_wrapper(_exists)
