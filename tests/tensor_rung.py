"""A rung for the CPU that reads TreeTensors alone, as the kernels on a GPU do."""

import torch
from torch import Tensor

from mmspec.attention import LayerRule, TreeCall


class TensorRung:
    """Every column that a row may have, masked by what the tensors say: slow and right."""

    name = "tensors"
    is_graph_safe = True

    def missing(self) -> str:
        return ""

    def can_attend(self, query: Tensor, keys: Tensor, values: Tensor, *, rule: LayerRule) -> bool:
        return True

    def attend(
        self, query: Tensor, keys: Tensor, values: Tensor, *, call: TreeCall, rule: LayerRule
    ) -> Tensor:
        tensors = call.tensors(query.device)
        group = query.shape[1] // keys.shape[1]
        columns = torch.arange(call.max_columns)
        slots = (tensors.starts.unsqueeze(1) + columns).clamp(max=keys.shape[0] - 1)
        key, value = (  # (batch, heads, columns, head_dim)
            buffer[slots].transpose(1, 2).repeat_interleave(group, dim=1)
            for buffer in (keys, values)
        )
        scores = query @ key.transpose(2, 3) * rule.scaling
        if rule.softcap is not None:
            scores = torch.tanh(scores / rule.softcap) * rule.softcap
        seen = self._seen(call, rule, columns, query.shape[2]).unsqueeze(1)
        scores = scores.masked_fill(~seen, -torch.inf)
        if rule.sinks is not None:
            sinks = rule.sinks.view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
            weights = torch.cat([scores, sinks.to(scores.dtype)], dim=-1).softmax(dim=-1)[..., :-1]
        else:
            weights = scores.softmax(dim=-1).nan_to_num(0.0)
        return (weights @ value).transpose(1, 2)

    def _seen(self, call: TreeCall, rule: LayerRule, columns: Tensor, nodes: int) -> Tensor:
        """(batch, nodes, columns)"""
        tensors = call.tensors(columns.device)
        committed, num_tail = (t.unsqueeze(1) for t in (tensors.committed, tensors.num_tail))
        place = (columns - committed).clamp(0, tensors.depths.shape[1] - 1)  # in the tail
        word = tensors.visible.gather(2, (place // 32).unsqueeze(1).expand(-1, nodes, -1))
        bit = (word >> (place % 32).unsqueeze(1)) & 1
        is_prefix = (columns < committed).unsqueeze(1)
        is_tail = ((columns >= committed) & (columns < committed + num_tail)).unsqueeze(1)
        seen = is_prefix | (is_tail & (bit == 1))
        positions = torch.where(
            columns < committed, columns, committed + tensors.depths.gather(1, place)
        ).unsqueeze(1)
        own = num_tail - tensors.num_nodes.unsqueeze(1) + torch.arange(nodes)
        own = tensors.depths.gather(1, own.clamp(0, tensors.depths.shape[1] - 1).long())
        query = (committed + own).unsqueeze(2)
        if rule.reach.window is not None:
            seen = seen & (query - positions < rule.reach.window)
        if rule.reach.chunk is not None:
            seen = seen & (query // rule.reach.chunk == positions // rule.reach.chunk)
        return seen & (torch.arange(nodes) < tensors.num_nodes.unsqueeze(1)).unsqueeze(2)
