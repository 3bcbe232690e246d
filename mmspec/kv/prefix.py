"""PrefixStore: the KV of texts that were decoded before, for texts that begin alike.

A tree of segments (a radix tree): texts share the segments of what they have in common, so that a
document with ten questions about it is kept once.

    (namespace, weights) ── document ─┬─ question 1 ── answer 1
                                      └─ question 2 ── answer 2
"""

import threading
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from mmspec.kv.cache import KVCache, Segment
from mmspec.kv.state_slots import StateBlock

_PIECE_TOKENS = 256  # a long text is kept in pieces, so that its end can be dropped alone


@dataclass(frozen=True)
class StoreInfo:
    """What a store holds."""

    num_entries: int
    num_tokens: int
    num_bytes: int
    max_bytes: int


class PrefixStore:
    """KV by token keys, bounded in bytes; the least recently used leaves go first, never one in
    use. Can be used from several threads.

    A token's key is whatever its keys and values depend on beside the tokens before it: its id,
    and where that is not all, its position and the digest of its image (`target.keys` makes them).
    `weights` tells apart what one and the same text gives under other weights; nothing that one
    namespace holds is ever found from another.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._roots: dict[tuple[str, Hashable], _Node] = {}
        self._num_bytes = 0
        self._clock = 0
        self._lock = threading.RLock()

    def match(self, namespace: str, weights: Hashable, keys: Sequence[Hashable]) -> "Lease":
        """The longest stored beginning of `keys`. It cannot be dropped until the lease ends."""
        with self._lock:
            node, length = self._descend(self._roots.get((namespace, weights), _Node()), keys)
            node.num_users += 1
            return Lease(length, node, self)

    def insert(
        self,
        namespace: str,
        weights: Hashable,
        keys: Sequence[Hashable],
        cache: KVCache,
        row: int,
    ) -> None:
        """Copies what is new of the row's first `len(keys)` committed tokens; only as much of it as
        there is room for, from its beginning. Where those are all that the row has, its running
        state goes with them."""
        with self._lock:
            root = self._roots.setdefault((namespace, weights), _Node())
            node, length = self._descend(root, keys)
            node = self._cut(node, length)
            while length < len(keys):
                stop = min(length + _PIECE_TOKENS, len(keys))
                child = _Node(tuple(keys[length:stop]), cache.read(row, length, stop), node)
                if not self._make_room(child.num_bytes, behind=node):
                    break
                node.children[child.keys[0]] = child
                self._num_bytes += child.num_bytes
                self._touch(child)
                node, length = child, stop
            if length == len(keys) == cache.length(row):
                self._keep_state(node, cache, row)
            self._roots = {key: r for key, r in self._roots.items() if r.children}

    def clear(self, namespace: str | None = None) -> None:
        """Drops all there is, or one namespace's."""
        with self._lock:
            for key in [k for k in self._roots if namespace is None or k[0] == namespace]:
                root = self._roots.pop(key)
                self._num_bytes -= sum(node.num_bytes for node in root.below())

    @property
    def info(self) -> StoreInfo:
        with self._lock:
            nodes = [node for root in self._roots.values() for node in root.below()]
            num_tokens = sum(len(node.keys) for node in nodes)
            return StoreInfo(len(nodes), num_tokens, self._num_bytes, self.max_bytes)

    def check_integrity(self) -> None:
        """Raises AssertionError if bytes are counted wrong or a node is not where it belongs."""
        with self._lock:
            nodes = [node for root in self._roots.values() for node in root.below()]
            assert self._num_bytes == sum(node.num_bytes for node in nodes) <= self.max_bytes
            for node in nodes:
                assert node.keys and node.num_users >= 0
                assert node.parent is not None and node.parent.children[node.keys[0]] is node
                for pair in node.segment:
                    assert pair is None or all(t.shape[0] == len(node.keys) for t in pair)

    def _descend(self, node: "_Node", keys: Sequence[Hashable]) -> tuple["_Node", int]:
        """The last node that `keys` reach into, and how many of them are stored; all nodes on the
        way count as used now."""
        length = 0
        while length < len(keys) and (child := node.children.get(keys[length])) is not None:
            shared = _num_equal(child.keys, keys[length : length + len(child.keys)])
            node, length = child, length + shared
            self._touch(node)
            if shared < len(child.keys):
                break
        return node, length

    def _cut(self, node: "_Node", length: int) -> "_Node":
        """The node that ends after `length` tokens of its text: `node`, or a new one for its first
        part. `node` itself keeps the end, so that a lease on it still holds all of its way."""
        at = length - node.start
        if at == len(node.keys):
            return node
        parent = node.parent
        assert parent is not None and 0 < at < len(node.keys)
        # Copied before the tree is touched: there may be no memory for it.
        first, rest = _part(node.segment, 0, at), _part(node.segment, at, None)
        head = _Node(node.keys[:at], first, parent, last_used=node.last_used)
        parent.children[head.keys[0]] = head
        node.keys, node.segment, node.parent = node.keys[at:], rest, head
        head.children[node.keys[0]] = node
        return head

    def _keep_state(self, node: "_Node", cache: KVCache, row: int) -> None:
        """The row's running state, at the end of a node of its text, if there is room for it."""
        state = cache.snapshot(row) if node.state is None else None
        if state is not None and self._make_room(state.num_bytes, behind=node):
            node.state = state
            self._num_bytes += state.num_bytes

    def _make_room(self, num_bytes: int, *, behind: "_Node") -> bool:
        """Drops what is unused, the longest unused first, until `num_bytes` more fit: running
        states within a text that goes on, and then leaves. `behind` stays, as a leaf, too."""
        if num_bytes > self.max_bytes:
            return False
        while self._num_bytes + num_bytes > self.max_bytes:
            nodes = [node for root in self._roots.values() for node in root.below()]
            passed = [node for node in nodes if node.is_passed]
            if passed:
                longest = min(passed, key=lambda node: node.last_used)
                self._num_bytes -= longest.drop_state()
                continue
            leaves = [
                node
                for node in nodes
                if not node.children and not node.num_users and node is not behind
            ]
            if not leaves:
                return False
            oldest = min(leaves, key=lambda node: node.last_used)
            assert oldest.parent is not None
            del oldest.parent.children[oldest.keys[0]]
            self._num_bytes -= oldest.num_bytes
        return True

    def _touch(self, node: "_Node") -> None:
        self._clock += 1
        node.last_used = self._clock


class Lease:
    """A stored beginning of a text, kept from being dropped until `release`."""

    def __init__(self, length: int, node: "_Node", store: PrefixStore) -> None:
        self.length = length  # tokens
        self._node: _Node | None = node
        self._store = store

    def resumable(self, limit: int) -> int:
        """The most tokens, at most `limit`, behind which a running state is kept; 0 where none
        is."""
        assert self._node is not None, "the lease has ended"
        with self._store._lock:
            way = self._node.way()
            ends = accumulate(len(node.keys) for node in way)
            pairs = zip(way, ends, strict=True)
            known = [end for node, end in pairs if node.state is not None]
        return max((end for end in known if end <= min(limit, self.length)), default=0)

    def copy_to(self, cache: KVCache, row: int, *, count: int) -> None:
        """Commits the first `count` tokens to the row, which must be empty; where it has a running
        state, as many as are `resumable`."""
        assert self._node is not None, "the lease has ended"
        assert cache.length(row) == 0 and count <= self.length
        with self._store._lock:
            state: StateBlock | None = None
            for node in self._node.way():
                taken = min(len(node.keys), count - cache.length(row))
                if taken > 0:
                    cache.append(row, node.segment, count=taken)
                    state = node.state if taken == len(node.keys) else None
            if state is not None:
                cache.resume(row, state)
            assert not cache.is_lost(row), f"no state is kept behind {count} tokens"

    def release(self) -> None:
        """Ends the lease. Again is the same as once."""
        with self._store._lock:
            if self._node is not None:
                self._node.num_users -= 1
                self._node = None


@dataclass(eq=False)
class _Node:
    """Some tokens of a text, behind its parent's; a root has none."""

    keys: tuple[Hashable, ...] = ()
    segment: Segment = ()
    parent: "_Node | None" = None
    children: dict[Hashable, "_Node"] = field(default_factory=dict)
    num_users: int = 0  # leases that end here; a node with children is never dropped before them
    last_used: int = 0
    state: StateBlock | None = None  # the running state behind its last token, where it was kept

    @property
    def num_bytes(self) -> int:
        state = 0 if self.state is None else self.state.num_bytes
        return state + sum(t.nbytes for pair in self.segment if pair is not None for t in pair)

    @property
    def is_passed(self) -> bool:
        """Whether it has a running state where its text goes on, in one way, and no lease ends
        there or further on."""
        if self.state is None or len(self.children) != 1 or self.num_users:
            return False
        return not any(node.num_users for node in self.below())

    def drop_state(self) -> int:
        """Returns the bytes that it had."""
        num_bytes, self.state = self.num_bytes, None
        return num_bytes - self.num_bytes

    @property
    def start(self) -> int:
        """Tokens of the text before its own."""
        return sum(len(node.keys) for node in self.way()) - len(self.keys)

    def way(self) -> list["_Node"]:
        """From the root's child down to this node."""
        nodes: list[_Node] = []
        node: _Node | None = self
        while node is not None:
            nodes.append(node)
            node = node.parent
        return [node for node in reversed(nodes) if node.keys]

    def below(self) -> Iterator["_Node"]:
        """All nodes under this one."""
        waiting = list(self.children.values())
        while waiting:
            node = waiting.pop()
            waiting += node.children.values()
            yield node


def _num_equal(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    if tuple(first) == tuple(second):
        return len(first)
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))


def _part(segment: Segment, start: int, stop: int | None) -> Segment:
    """Copied, so that the memory of each part can be freed alone."""
    return tuple(
        None if pair is None else (pair[0][start:stop].clone(), pair[1][start:stop].clone())
        for pair in segment
    )
