"""Storage in a bucket of Amazon S3, or of a service with its interface: R2, MinIO, Tigris.

In: names and bytes. Out: objects of the bucket under a prefix. Guarantee: as in the package; a create is conditional
(`If-None-Match: *`), and after a write with a lost or unexpected answer the object is read back. The first create of a
process is repeated, in one request and in parts, to prove that the service honours the condition. Each object has its
crc32c in its metadata, which the service compares with the content where it can. Cost: one request for an operation; a
large upload: one more for each 32 MiB. Parts of an upload that was refused or interrupted, the proof's among them, stay
in the bucket until a lifecycle rule removes them.

Credentials, region and endpoint are those of AWS's own tools (AWS_ENDPOINT_URL_S3 names another service).
"""

import io
import math
import re
from collections.abc import Callable, Iterator, Sequence
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

from ..core.errors import DamagedData, ExtractionError, InvalidRequest, ObjectExists, ObjectNotFound
from .base import ObjectInfo, Part, RangedFile, Storage, check_name, crc32c_base64, read_in_parallel, size_said
from .retries import Passing, RetryPolicy
from .s3_errors import domain_error, is_missing, is_passing, is_worth_another_upload, reason, status_of

READ_AHEAD = 1 << 20
_SINGLE_REQUEST = 8 << 20
_PART = 32 << 20
_READ_TRIES = 6
_CRC = "crc32c"  # the key in an object's metadata
_BUCKET = re.compile(r"[A-Za-z0-9._-]{3,255}|arn:[\w:.-]+", re.ASCII)
Result = TypeVar("Result")


class S3Storage(Storage):
    """Objects of a bucket under a prefix, with credentials from the environment."""

    def __init__(self, location: str):
        path = location.removeprefix("s3://").rstrip("/")
        self.location = f"s3://{path}"
        self._bucket, _, prefix = path.partition("/")
        if not _BUCKET.fullmatch(self._bucket):
            raise InvalidRequest(
                f"{location}: give s3://bucket/prefix; a bucket's name has three or more of a-z, 0-9, - . _"
            )
        self._prefix = prefix + "/" if prefix else ""
        self._retries, self._service = RetryPolicy(), ""
        self._client = self._call("GetObject", "", _make_client)
        self._service = f"{self._client.meta.endpoint_url}/{self._bucket}"
        self._is_proven = False

    def create(self, name: str, data: bytes | memoryview) -> ObjectInfo:
        view = memoryview(data).cast("B")
        checksum = crc32c_base64(view)

        def attempt() -> ObjectInfo:
            try:
                upload = self._upload if len(view) <= _SINGLE_REQUEST else self._upload_parts
                tag = upload(name, view, checksum)
                return ObjectInfo(name, len(view), checksum, etag=tag)
            except Exception as error:
                # After any error the object may exist: look for it first.
                info = self._find(name, error)
                if info is None and is_worth_another_upload(error):
                    raise ConnectionError(f"the upload left nothing: {reason(error)}") from error
                if info is None:
                    raise
                return info

        info = self._call("PutObject", name, attempt)
        if info.size == len(view) and not info.crc32c:
            info = self.stat_with_crc32c(name)  # it was there, copied by another tool
        if not info.holds(len(view), checksum):
            raise ObjectExists(f"{self._url(name)} is there with other bytes")
        if not self._is_proven and 0 < len(view) <= _SINGLE_REQUEST:
            for upload in (self._upload, self._upload_parts):
                self._prove(name, lambda upload=upload: upload(name, view, checksum))
            self._is_proven = True
        return info

    def _upload(self, name: str, view: memoryview, checksum: str) -> str | None:
        """Create an object in one request; return its tag."""
        place = {"Bucket": self._bucket, "Key": self._key(name)}
        checked = {"ChecksumCRC32C": checksum, "Metadata": {_CRC: checksum}}
        return self._client.put_object(**place, Body=bytes(view), IfNoneMatch="*", **checked).get("ETag")

    def _upload_parts(self, name: str, view: memoryview, checksum: str) -> str | None:
        """Create an object in parts; return its tag."""
        place: dict[str, Any] = {"Bucket": self._bucket, "Key": self._key(name)}
        kind = {"ChecksumAlgorithm": "CRC32C", "ChecksumType": "FULL_OBJECT"}
        upload = self._client.create_multipart_upload(**place, **kind, Metadata={_CRC: checksum})["UploadId"]
        parts = []
        for number, first in enumerate(range(0, len(view), _PART), 1):
            part = bytes(view[first : first + _PART])
            asked = {"UploadId": upload, "PartNumber": number, "ChecksumCRC32C": crc32c_base64(part)}
            answer = self._client.upload_part(**place, **asked, Body=part)
            parts.append({"PartNumber": number, "ETag": answer["ETag"], "ChecksumCRC32C": asked["ChecksumCRC32C"]})
        whole = {"ChecksumCRC32C": checksum, "ChecksumType": "FULL_OBJECT"}
        asked = {"UploadId": upload, "MultipartUpload": {"Parts": parts}, "IfNoneMatch": "*"}
        return self._client.complete_multipart_upload(**place, **whole, **asked).get("ETag")

    def _prove(self, name: str, upload: Callable[[], object]) -> None:
        """Create the object once more, with the same bytes. Raises InvalidRequest if the service permits it."""

        def attempt() -> bool:
            try:
                upload()
            except Exception as error:
                if status_of(error) == 412:
                    return True
                raise
            return False

        if not self._call("PutObject", name, attempt):
            raise InvalidRequest(
                f"s3://{self._bucket}: the service ignores If-None-Match: *, and without create-only writes workers "
                "could overwrite each other's batches; use another service"
            )

    def _find(self, name: str, failure: Exception) -> ObjectInfo | None:
        """Return the object whose upload failed, None if it is missing, or not shown and the failure may pass."""
        try:
            return self._stat(name)
        except Exception as error:
            is_refused = status_of(error) in (401, 403)
            # Where the clock differs both are refused, and the answer to a HEAD request has no code that says so.
            if is_missing(error) or (is_refused and is_passing(failure)):
                return None
            if is_refused:
                raise domain_error(error, "GetObject", self._bucket, self._url(name)) from error
            raise

    def _stat(self, name: str) -> ObjectInfo:
        found = self._client.head_object(Bucket=self._bucket, Key=self._key(name))
        return self._info(name, found["ContentLength"], found)

    def stat(self, name: str) -> ObjectInfo:
        return self._call("GetObject", name, lambda: self._stat(name))

    def read(self, name: str, start: int = 0, end: int | None = None) -> bytes:
        return bytes(self._read(name, start, end).data)

    def read_part(self, name: str, start: int, end: int) -> Part:
        return self._read(name, start, end)

    def _read(self, name: str, start: int, end: int | None, **version: str) -> Part:
        if end is not None and end <= start:
            return Part(b"", None)
        is_part = start > 0 or end is not None
        asked = {"Range": f"bytes={start}-{'' if end is None else end - 1}"} if is_part else {}
        for _ in range(_READ_TRIES):
            part = self._call("GetObject", name, lambda: self._download(name, asked | version))
            if part.crc32c in ("", crc32c_base64(part.data)):
                return part
        raise DamagedData(f"{self._url(name)}: the bytes read do not match its crc32c, {_READ_TRIES} times")

    def _download(self, name: str, asked: dict[str, str]) -> Part:
        try:
            answer = self._client.get_object(Bucket=self._bucket, Key=self._key(name), **asked)
        except Exception as error:
            if status_of(error) == 416:  # the range begins beyond the end
                return Part(b"", None)
            raise
        with answer["Body"] as body:
            data = body.read()
        if len(data) != answer["ContentLength"]:
            raise ConnectionError("the answer was cut")
        if "Range" in asked and answer["ResponseMetadata"]["HTTPStatusCode"] != 206:
            raise InvalidRequest(f"{self._url(name)}: the service does not give parts of it")
        is_whole = "Range" not in asked or answer["ContentRange"] == f"bytes 0-{len(data) - 1}/{len(data)}"
        size = size_said(answer["ContentRange"]) if "Range" in asked else len(data)
        return Part(data, size, answer.get("Metadata", {}).get(_CRC, "") if is_whole else "")

    def view(self, name: str, start: int = 0, end: int | None = None) -> memoryview:
        end = self.stat(name).size if end is None else end
        return read_in_parallel(lambda first, last: self.read(name, first, last), start, end, self._url(name))

    def list(self, prefix: str = "", start_after: str = "") -> Iterator[ObjectInfo]:
        asked: dict[str, str] | None = {"StartAfter": self._prefix + start_after} if start_after else {}
        while asked is not None:
            page = self._call("ListBucket", prefix, lambda asked=asked: self._page(self._prefix + prefix, **asked))
            for found in page.get("Contents", ()):
                yield self._info(found["Key"].removeprefix(self._prefix), found["Size"], found)
            token = page.get("NextContinuationToken")
            asked = {"ContinuationToken": token} if token else None

    def _page(self, prefix: str, **asked: Any) -> dict[str, Any]:
        return self._client.list_objects_v2(Bucket=self._bucket, Prefix=prefix, **asked)

    def folders(self) -> Sequence[str]:
        found: list[str] = []
        asked: dict[str, str] | None = {}
        while asked is not None:
            more = {"Delimiter": "/"} | asked
            page = self._call("ListBucket", "", lambda more=more: self._page(self._prefix, **more))
            found += [one["Prefix"].removeprefix(self._prefix).rstrip("/") for one in page.get("CommonPrefixes", ())]
            token = page.get("NextContinuationToken")
            asked = {"ContinuationToken": token} if token else None
        return sorted(found)

    def now(self) -> float:
        answer = self._call("ListBucket", "", lambda: self._page(self._prefix, MaxKeys=1))
        return parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"]).timestamp()

    def replace(self, name: str, data: bytes) -> None:
        place = {"Bucket": self._bucket, "Key": self._key(name)}
        metadata = {_CRC: crc32c_base64(data)}
        self._call("PutObject", name, lambda: self._client.put_object(**place, Body=data, Metadata=metadata), tries=1)

    def open(self, name: str) -> io.BufferedReader:
        return io.BufferedReader(self.open_version(self.stat(name)), READ_AHEAD)

    def open_version(self, info: ObjectInfo) -> RangedFile:
        version = {"IfMatch": info.etag} if info.etag else {}

        def read(start: int, end: int) -> bytes:
            try:
                return bytes(self._read(info.name, start, end, **version).data)
            except (ObjectNotFound, ObjectExists) as error:
                raise DamagedData(f"{self}/{info.name}: it was replaced or removed while it was read") from error

        return RangedFile(read, info.size)

    def _key(self, name: str) -> str:
        return self._prefix + check_name(name)

    def _url(self, name: str) -> str:
        return f"s3://{self._bucket}/{self._prefix}{name}"

    def _info(self, name: str, size: int, found: dict[str, Any]) -> ObjectInfo:
        checksum = found.get("Metadata", {}).get(_CRC, "")
        return ObjectInfo(name, size, checksum, None, found["LastModified"].timestamp(), found.get("ETag"))

    def _call(self, permission: str, name: str, attempt: Callable[[], Result], tries: float = math.inf) -> Result:
        """Return the result of `attempt`, retried; `permission` is what it needs of `s3:`."""

        def judge(error: Exception) -> Passing | Exception:
            if isinstance(error, ExtractionError):
                return error
            if is_passing(error):
                return Passing(reason(error))
            return domain_error(error, permission, self._bucket, self._url(name))

        return self._retries.call(self._url(name), attempt, judge, tries, f"{permission} on {self._service}")


def _make_client() -> Any:
    try:
        from boto3.session import Session
        from botocore.config import Config
    except ImportError as error:
        raise InvalidRequest("s3:// needs the package boto3: pip install '.[s3]'") from error
    settings = Config(
        connect_timeout=10, read_timeout=60, max_pool_connections=32, retries={"total_max_attempts": 1},
        request_checksum_calculation="when_required", response_checksum_validation="when_required",
    )  # fmt: skip
    try:
        return Session().client("s3", config=settings)
    except ValueError as error:  # AWS_ENDPOINT_URL_S3 without https://
        raise InvalidRequest(f"s3:// is not configured: {reason(error)}") from error
