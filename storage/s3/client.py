"""The client of a bucket; whatever goes wrong with the object store becomes one sentence.

Credentials, region and endpoint come from the environment (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, …) and stay inside
obstore's client: no text made here holds them.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any

from dataworth.storage.errors import InputError, StoreUnreachableError

__all__ = ["client", "translate_errors"]

# obstore repeats a failed request by itself: through a restart of the server or a broken line, not through an outage.
RETRIES = 8
RETRY_FOR = timedelta(seconds=40)


@cache
def client(bucket: str) -> Any:
    """The client of a bucket, set up from the environment.

    Raises:
        InputError: obstore is not installed, or the environment cannot be used.
    """
    try:
        from obstore.exceptions import BaseError
        from obstore.store import S3Store
    except ImportError:
        raise InputError("stores on s3:// need the package obstore: pip install 'dataworth[objects]'") from None
    try:
        return S3Store(bucket, retry_config={"max_retries": RETRIES, "retry_timeout": RETRY_FOR})
    except (BaseError, ValueError) as error:
        raise InputError(f"s3://{bucket}: the AWS_… variables cannot be used ({_reason(error)})") from None


def _reason(error: Exception) -> str:
    """What an exception of obstore says, in a few words.

    Of an answer only code and message are taken: its other fields may name an access key.
    """
    text = str(error)
    answer = re.search(r"<Code>(.*?)</Code>\s*<Message>(.*?)</Message>", text, re.DOTALL)
    if answer:
        return f"{answer[1]}: {answer[2].strip().rstrip('.')}"
    system = re.search(r'kind: \w+,\s*message: "(.*?)"', text)
    first = text.splitlines()[0].split("<?xml")[0].strip().rstrip(":")
    return f"{first}, {system[1]}" if system else first


@contextmanager
def translate_errors(place: object) -> Iterator[None]:
    """Turn whatever error the object store causes in the block into one sentence.

    Raises:
        StoreUnreachableError: whatever obstore raises, but for an object that is not there.
    """
    from obstore.exceptions import BaseError

    try:
        yield
    except FileNotFoundError as error:
        if "NoSuchBucket" not in str(error):
            raise FileNotFoundError(f"{place} is not there") from None
        raise StoreUnreachableError(str(place), _reason(error)) from None
    except BaseError as error:
        raise StoreUnreachableError(str(place), _reason(error)) from None
