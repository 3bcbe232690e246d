"""The cases of the conformance suite, as data."""

from dataclasses import dataclass, field, replace
from functools import cached_property


@dataclass(frozen=True)
class Case:
    """One layer of one score call."""

    committed: tuple[int, ...] = (33,)  # by row
    nodes: tuple[int, ...] = (5,)
    older: int = 0  # uncommitted tokens that an earlier forward wrote
    kv_heads: int = 2
    group: int = 4
    head_dim: int = 128
    value_dim: int | None = None  # None: as the keys'
    window: int | None = None
    chunk: int | None = None
    softcap: float | None = None
    has_sinks: bool = False
    is_prepared: bool = False  # tensors of a graph, with a row and nodes that are padding
    is_gathered: bool = False  # rows of a view of compressed_kv
    before: int = 0  # slots of the buffers before the first row
    seed: int = field(default=0, compare=False)

    @cached_property
    def label(self) -> str:
        """What differs from the first case of all."""
        plain = Case()
        told = [
            f"{name}={getattr(self, name)}".replace(" ", "")
            for name in self.__dataclass_fields__
            if name != "seed" and getattr(self, name) != getattr(plain, name)
        ]
        return " ".join(told) or "plain"

    @property
    def size(self) -> int:
        """Scores that it computes, for whoever runs the small ones alone."""
        heads = self.kv_heads * self.group
        pairs = zip(self.committed, self.nodes, strict=True)
        return sum((committed + nodes) * nodes * heads for committed, nodes in pairs)


def _cases() -> tuple[Case, ...]:
    plain = Case()
    ragged = replace(plain, committed=(21, 0, 150, 6), nodes=(7, 2, 1, 17))
    long_ragged = replace(plain, committed=(4096, 0, 257, 1), nodes=(17, 64, 1, 9))
    reaches = [
        replace(plain, committed=(300, 9), nodes=(16, 9), window=window) for window in (1, 6, 64)
    ]
    reaches += [
        replace(plain, committed=(300, 9), nodes=(16, 9), chunk=chunk) for chunk in (8, 256)
    ]
    rules = [
        *reaches,
        replace(ragged, window=100_000),
        replace(ragged, softcap=3.0),
        replace(ragged, has_sinks=True),
        replace(ragged, softcap=3.0, has_sinks=True),
        replace(ragged, window=40, softcap=3.0, has_sinks=True),
        replace(long_ragged, window=1024),
        replace(long_ragged, softcap=30.0),
        replace(long_ragged, has_sinks=True),
    ]
    cases = [
        plain,
        *(replace(plain, committed=(count,)) for count in (0, 1, 255, 256, 257, 4096, 65_536)),
        replace(plain, committed=(65_536, 255), nodes=(64, 3)),
        *(replace(plain, group=group, nodes=(7,)) for group in (1, 4, 7, 8)),
        *(replace(plain, group=group, committed=(4096,), nodes=(33,)) for group in (1, 7, 8)),
        *(replace(plain, nodes=(count,)) for count in (1, 2, 3, 8, 15, 16, 17, 32, 64, 128)),
        *(replace(plain, committed=(4096,), nodes=(n,)) for n in (1, 63, 64, 65, 128)),
        *(replace(plain, head_dim=size, committed=(257,)) for size in (64, 80, 96, 128, 256)),
        *(replace(ragged, head_dim=size) for size in (64, 80, 96, 256)),
        *(replace(plain, head_dim=256, committed=(4096,), nodes=(n,)) for n in (8, 64)),
        replace(plain, head_dim=96, value_dim=64),
        replace(plain, head_dim=64, value_dim=128, committed=(300,)),
        ragged,
        long_ragged,
        replace(plain, older=9),
        replace(ragged, older=40),
        *rules,
        *(replace(case, is_prepared=True) for case in (plain, ragged, long_ragged, *rules)),
        replace(plain, is_gathered=True, committed=(120, 90), nodes=(5, 9)),
        replace(plain, is_gathered=True, committed=(4000, 1500), nodes=(64, 9), kv_heads=8),
    ]
    unique = list(dict.fromkeys(cases))
    return tuple(replace(case, seed=index) for index, case in enumerate(unique))


CASES = _cases()
# Rows whose keys lie more than 2**31 elements into their buffer: two buffers of 4 GiB in 16 bits.
FAR = Case(committed=(300, 9), nodes=(9, 3), before=2**31 // (2 * 128))
