"""Functions with the interface of the FlashAttention packages, written out in plain torch.

They take what the real ones take: names and defaults in their order (as in the packages' own
files), shapes, dtypes and lengths on the device; and answer as they do where a prefix is empty.
Everything that mmspec does not use is refused.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

_BLOCK = 128  # keys that a program reads at once


def flash_attn_3_with_kvcache(
    q: Tensor,  # (batch, seqlen, nheads, headdim)
    k_cache: Tensor,  # (batch_cache, seqlen_cache, nheads_k, headdim)
    v_cache: Tensor,
    k: None = None,
    v: None = None,
    qv: None = None,
    rotary_cos: None = None,
    rotary_sin: None = None,
    cache_seqlens: Tensor | None = None,
    cache_batch_idx: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    page_table: None = None,
    cu_seqlens_q: None = None,
    cu_seqlens_k_new: None = None,
    max_seqlen_q: None = None,
    rotary_seqlens: None = None,
    q_descale: None = None,
    k_descale: None = None,
    v_descale: None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    attention_chunk: int = 0,
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    scheduler_metadata: None = None,
    num_splits: int = 0,
    pack_gqa: bool | None = None,
    sm_margin: int = 0,
    return_softmax_lse: bool = False,
) -> tuple[Tensor, ...]:
    """Of fa3-fwd 0.0.3. Returns four tensors where the log-sum-exp is asked for, the last two of
    its own."""
    assert return_softmax_lse and not causal and window_size == (-1, -1)
    spans = _cached_spans(q, k_cache, cache_seqlens, cache_batch_idx, cache_leftpad)
    _read_whole_blocks(k_cache, v_cache, spans)
    out, lse = _attend(q, k_cache, v_cache, spans, softmax_scale, softcap, empty=float("-inf"))
    return out, lse, q.new_empty(0), q.new_empty(0)


def flash_attn_2_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: None = None,
    v: None = None,
    rotary_cos: None = None,
    rotary_sin: None = None,
    cache_seqlens: Tensor | None = None,
    cache_batch_idx: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    block_table: None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    alibi_slopes: None = None,
    num_splits: int = 0,
    return_softmax_lse: bool = False,
) -> tuple[Tensor, Tensor]:
    """Of flash-attn 2.8.3, and all since 2.6.1."""
    assert return_softmax_lse and not causal and window_size == (-1, -1)
    spans = _cached_spans(q, k_cache, cache_seqlens, cache_batch_idx, cache_leftpad)
    return _attend(q, k_cache, v_cache, spans, softmax_scale, softcap, empty=float("inf"))


def flash_attn_4_varlen_func(
    q: Tensor,
    k: Tensor,  # (total_k, nheads_k, hdim) with cu_seqlens_k, else with a batch before
    v: Tensor,
    qv: None = None,
    cu_seqlens_q: None = None,
    cu_seqlens_k: Tensor | None = None,
    max_seqlen_q: None = None,
    max_seqlen_k: int | None = None,
    min_seqlen_k: None = None,
    seqused_q: None = None,
    seqused_k: Tensor | None = None,
    gather_kv_indices: None = None,
    page_table: None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[None, None] = (None, None),
    learnable_sink: None = None,
    softcap: float = 0.0,
    num_splits: int = 1,
    pack_gqa: bool | None = None,
    deterministic: bool = False,
    score_mod: None = None,
    score_mod_bwd: None = None,
    mask_mod: None = None,
    block_sparse_tensors: None = None,
    aux_tensors: None = None,
    aux_scalars: None = None,
    return_lse: bool = False,
    scheduler_metadata: None = None,
    seqlen_k_per_split: int | None = None,
    disable_scheduler_metadata: bool = False,
    gather_bwd_recompute_p: bool = False,
    gather_bwd_token_chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Of flash-attn-4 4.0.0b36."""
    assert return_lse and not causal
    assert num_splits == 1, "more than one is not supported on Hopper"
    if cu_seqlens_k is None:
        assert k.shape[0] == q.shape[0] and k.ndim == 4
        spans = [(row, 0, k.shape[1]) for row in range(len(q))]
    else:
        assert seqused_k is not None and max_seqlen_k is not None and k.ndim == 3
        for lengths, count in ((cu_seqlens_k, len(q) + 1), (seqused_k, len(q))):
            assert lengths.dtype == torch.int32 and lengths.shape == (count,)
            assert lengths.stride(0) == 1
        assert int(seqused_k.max()) <= max_seqlen_k
        begins = cu_seqlens_k.tolist()[:-1]
        used = seqused_k.tolist()
        spans = [(0, begin, begin + count) for begin, count in zip(begins, used, strict=True)]
        k, v = k.unsqueeze(0), v.unsqueeze(0)
        _read_whole_blocks(k, v, spans)
    return _attend(q, k, v, spans, softmax_scale, softcap, empty=float("-inf"))


def _read_whole_blocks(k: Tensor, v: Tensor, spans: Sequence[tuple[int, int, int]]) -> None:
    """Of 3 and 4: what lies behind a row, another's keys and values, is weighed with 0, and of NaN
    that makes NaN (flash-attention's issues 1745 and 2374)."""
    for row, begin, stop in spans:
        read = slice(begin, begin - (stop - begin) // -_BLOCK * _BLOCK)
        assert bool(k[row, read].isfinite().all()) and bool(v[row, read].isfinite().all())


def torch_flash(
    query: Tensor,  # (batch, heads, nodes, head_dim)
    key: Tensor,
    value: Tensor,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    return_debug_mask: bool = False,
    *,
    scale: float | None = None,
) -> tuple[Tensor, ...]:
    """aten._scaled_dot_product_flash_attention, whose heads of queries and keys are as many."""
    assert query.shape[1] == key.shape[1]
    assert not is_causal or query.shape[2] == key.shape[2], "else torch refuses"
    spans = [(row, 0, key.shape[2]) for row in range(len(query))]
    tokens_first = (t.transpose(1, 2) for t in (query, key, value))
    named = {"empty": float("inf"), "is_causal": is_causal}
    out, lse = _attend(*tokens_first, spans, scale, 0.0, **named)
    rest = [query.new_empty(0)] * 7
    return out.transpose(1, 2), lse, *rest


def _cached_spans(
    q: Tensor,
    k_cache: Tensor,
    seqlens: Tensor | None,
    batch_idx: Tensor | None,
    leftpad: Tensor | None,
) -> list[tuple[int, int, int]]:
    """(row of the cache, first, stop) by row: `seqlens` counts from the cache's begin, padding on
    the left included."""
    if seqlens is None:
        assert batch_idx is None and leftpad is None and len(k_cache) == len(q)
        return [(row, 0, k_cache.shape[1]) for row in range(len(q))]
    assert batch_idx is not None and leftpad is not None
    for lengths in (seqlens, batch_idx, leftpad):
        assert lengths.dtype == torch.int32 and lengths.shape == (len(q),)
        assert lengths.is_contiguous()
    columns = (batch_idx.tolist(), leftpad.tolist(), seqlens.tolist())
    return list(zip(*columns, strict=True))


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    spans: Sequence[tuple[int, int, int]],
    scale: float | None,
    softcap: float,
    *,
    empty: float,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor]:
    """(batch, seqlen, nheads, headdim) in the dtype of `q` and (batch, nheads, seqlen) float32;
    `empty` is the log-sum-exp of nothing, and what it comes with is not to be used."""
    assert q.dtype in (torch.bfloat16, torch.float16) and k.dtype == v.dtype == q.dtype
    assert scale is not None and q.stride(-1) == k.stride(-1) == v.stride(-1) == 1
    assert q.shape[2] % k.shape[2] == 0 and q.shape[3] == k.shape[3] and q.shape[3] % 8 == 0
    group = q.shape[2] // k.shape[2]
    out = q.new_full((*q.shape[:3], v.shape[3]), float("nan"))
    lse = torch.full((q.shape[0], q.shape[2], q.shape[1]), empty)
    for row, (cached, first, stop) in enumerate(spans):
        if first == stop:
            continue
        keys, values = (t[cached, first:stop].repeat_interleave(group, 1).float() for t in (k, v))
        scores = torch.einsum("nhd,khd->hnk", q[row].float(), keys) * scale
        if softcap:
            scores = torch.tanh(scores / softcap) * softcap
        if is_causal:
            scores = scores.masked_fill(~torch.ones_like(scores).bool().tril(), -torch.inf)
        lse[row] = scores.logsumexp(-1)
        out[row] = torch.einsum("hnk,khd->nhd", scores.softmax(-1), values).to(q.dtype)
    return out, lse
