"""Keys of an index: a token's, as its keys and values are."""

import torch

from mmspec.kv import KVCache, PrefixStore

INDEXED, PLAIN = 0, 1


def written(cache: KVCache, rows: list[int], count: int, *, seed: int) -> torch.Tensor:
    """One forward over `count` tokens of each row; returns the index keys that it gave."""
    draw = torch.Generator().manual_seed(seed)
    keys, values = torch.randn(2, len(rows), 1, count, 4, generator=draw)
    index = torch.randn(len(rows), count, 6, generator=draw)
    with cache.writing(rows, [count] * len(rows)):
        for layer in cache.layers:
            layer.update(keys, values)
        cache.seen = cache.layers[INDEXED].update_indexer(index)  # type: ignore[attr-defined]
    return index


def index_of(cache: KVCache, row: int) -> torch.Tensor:
    """(tokens, index_dim) of the row's committed tokens."""
    region, flat = cache.region(row), cache.flat_layers[INDEXED].index
    assert flat is not None
    slots = slice(region.start, region.start + region.length)
    return torch.cat([flat.keys[slots, 0], flat.values[slots, 0]], dim=-1)


def test_index_keys_are_moved_with_the_accepted_path() -> None:
    """Two rows of different lengths, which grow; each keeps another path."""
    cache = KVCache(2, index_layers=[INDEXED])
    first, second = cache.open(4), cache.open(4)
    prompt = written(cache, [first], 3, seed=0)
    cache.commit({first: range(3)})
    nodes = written(cache, [first, second], 5, seed=1)
    assert torch.equal(cache.seen[0], torch.cat([prompt[0], nodes[0]]))  # type: ignore[attr-defined]
    assert torch.equal(cache.seen[1, :5], nodes[1])  # type: ignore[attr-defined]
    cache.commit({first: (0, 2, 4), second: (0, 1)})
    assert torch.equal(index_of(cache, first), torch.cat([prompt[0], nodes[0, [0, 2, 4]]]))
    assert torch.equal(index_of(cache, second), nodes[1, :2])
    assert len(cache.layers) == 2 and cache.layers[PLAIN].index is None  # type: ignore[attr-defined]
    cache.check_integrity()
    cache.release()
    assert cache.num_bytes == 0


def test_a_stored_prefix_brings_its_index_keys() -> None:
    cache, store = KVCache(2, index_layers=[INDEXED]), PrefixStore(2**20)
    row = cache.open(8)
    given = written(cache, [row], 7, seed=2)
    cache.commit({row: range(7)})
    store.insert("", 0, list(range(7)), cache, row)
    other = cache.open(8)
    lease = store.match("", 0, [0, 1, 2, 3, 9])
    lease.copy_to(cache, other, count=4)
    assert torch.equal(index_of(cache, other), given[0, :4])
