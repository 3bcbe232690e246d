"""OpenStore: a datastore that is followed while others add to it."""

import logging
import os

from mmspec.errors import MmspecError
from mmspec.retrieval import Datastore
from mmspec.retrieval.manifest import MANIFEST

logger = logging.getLogger(__name__)


class OpenStore:
    """`current` is the datastore as it was when it was last refreshed; it stays usable when the
    folder changes or goes."""

    def __init__(self, store: Datastore) -> None:
        self.current = store
        self._seen = self._stamp()

    def refresh(self) -> None:
        """Opens what was committed since. Where nothing was it costs one stat, some microseconds;
        where that cannot be opened, the datastore stays as it is, with a warning."""
        stamp = self._stamp()
        if stamp == self._seen:
            return
        self._seen = stamp
        try:
            self.current = self.current.latest()
        except (MmspecError, OSError) as error:
            logger.warning("%s; drafts go on from the datastore as it was opened", error)

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            stat = os.stat(self.current.folder / MANIFEST)
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_ino, stat.st_size
