"""Access: who may ask, and whose earlier texts a request may use."""

import hashlib
import hmac
from collections.abc import Sequence

from mmspec.serving.errors import ApiError


class Access:
    """Without keys everybody may, and shares what earlier requests left."""

    def __init__(self, api_keys: Sequence[str]) -> None:
        self._digests = [hashlib.sha256(key.encode()).digest() for key in api_keys]

    def namespace(self, authorization: str | None) -> str:
        """The beginning of the names of all namespaces of who sends this header: what one key's
        requests leave is never found by another's. Raises ApiError."""
        if not self._digests:
            return ""
        scheme, _, key = (authorization or "").partition(" ")
        digest = hashlib.sha256(key.strip().encode()).digest()
        # Compares all of them, in a time that tells nothing of how far they agree.
        is_known = [hmac.compare_digest(digest, known) for known in self._digests]
        if scheme.lower() != "bearer" or not any(is_known):
            raise ApiError(
                401,
                "no valid API key; expected the header Authorization: Bearer <key>",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return f"{digest.hex()[:16]}/"
