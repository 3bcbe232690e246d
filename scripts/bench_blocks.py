"""What decoder blocks of kernels cost on a GPU beside the model's own, in captured graphs.

    python scripts/bench_blocks.py --out build/blocks.json
    python scripts/bench_blocks.py --shapes llama-3-8b --contexts 16 4096 --layers 32

Weights are random: these are timings only. Each shape is a model of `--layers` layers. It tells: a
stack of blocks by nodes and context, fused and the model's own layers (with torch's sdpa), and
the share of the measured copy bandwidth at which the fused ones read weights and keys; the whole
tower, head included; and each group of linear layers by every tiling beside the library. A time is
the least of several replays of one graph. On a toy, by Triton's interpreter, to see that it runs:

    TRITON_INTERPRET=1 python scripts/bench_blocks.py --device cpu --small
"""

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

import mmspec
from mmspec.attention import RowNodes, TreeCall
from mmspec.attention.reach import Reach
from mmspec.bench.harness import binary_tree, write_report
from mmspec.bench.machine import this_machine
from mmspec.kv import KVCache
from mmspec.target.blocks import Blocks
from mmspec.target.tower import quick_blocks

Clock = Callable[[Callable[[], object]], float]
_COMMON: dict[str, Any] = {"max_position_embeddings": 131_072, "tie_word_embeddings": False}
SHAPES: dict[str, tuple[type[PreTrainedModel], Callable[[int], Any], int]] = {
    "llama-3-8b": (
        LlamaForCausalLM,
        lambda layers: LlamaConfig(
            vocab_size=128_256, hidden_size=4096, intermediate_size=14_336,
            num_hidden_layers=layers, num_attention_heads=32, num_key_value_heads=8, **_COMMON,
        ),
        32,
    ),
    "qwen2.5-7b": (
        Qwen2ForCausalLM,
        lambda layers: Qwen2Config(
            vocab_size=152_064, hidden_size=3584, intermediate_size=18_944,
            num_hidden_layers=layers, num_attention_heads=28, num_key_value_heads=4, **_COMMON,
        ),
        28,
    ),
    "llama-2-7b": (
        LlamaForCausalLM,
        lambda layers: LlamaConfig(
            vocab_size=32_000, hidden_size=4096, intermediate_size=11_008,
            num_hidden_layers=layers, num_attention_heads=32, num_key_value_heads=32, **_COMMON,
        ),
        32,
    ),
}  # fmt: skip
SMALL: dict[str, tuple[type[PreTrainedModel], Callable[[int], Any], int]] = {
    "small": (
        Qwen2ForCausalLM,
        lambda layers: Qwen2Config(
            vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=layers,
            num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=False,
        ),
        2,
    )
}  # fmt: skip


@dataclass(frozen=True)
class BlockRow:
    """A stack of blocks, and the tower of them."""

    shape: str
    context: int
    nodes: int
    own_ms: float  # a layer, the model's own
    fused_ms: float  # a layer
    tower_ms: float  # embedding, `layers` layers and head
    layer_bytes: int  # weights, and keys and values that are read
    share: float  # of the copy bandwidth, at which a fused layer reads them
    model_ms: float  # of all the model's layers, told from the tower and a layer


@dataclass(frozen=True)
class LinearRow:
    """Linear layers that read the same states."""

    shape: str
    outs: tuple[int, ...]
    ins: int
    rows: int
    way: str  # a tiling, or the library
    ms: float
    share: float  # of the copy bandwidth
    is_chosen: bool


def copy_bandwidth(device: str, clock: Clock, size: int) -> float:
    """Bytes a second that are read and written by a copy."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / (clock(lambda: target.copy_(source)) / 1000)


class Bench:
    """One shape: a model, its blocks, and a cache of one long row."""

    def __init__(
        self, name: str, model: PreTrainedModel, blocks: Blocks, clock: Clock, bandwidth: float
    ) -> None:
        assert blocks.tower is not None, "a text model of a known kind"
        self.name, self.model, self.blocks, self.tower = name, model, blocks, blocks.tower
        self._clock, self._bandwidth = clock, bandwidth
        self._config = model.config
        self._weight = next(model.parameters())

    @torch.no_grad()
    def row(self, context: int, nodes: int, full_layers: int) -> BlockRow:
        tree, cache = binary_tree(nodes), KVCache(self._config.num_hidden_layers)
        row = cache.open(context + nodes)
        self._fill(cache, row, context)
        ids = torch.tensor([tree.tokens], device=self._weight.device)
        positions = context + torch.tensor([tree.depths], device=self._weight.device)
        decoder = self.model.get_decoder()
        states = decoder.embed_tokens(ids)
        embeddings = decoder.rotary_emb(states, position_ids=positions)
        with cache.writing([row], [nodes]) as plan:
            region = cache.region(row)
            nodes_of_row = RowNodes(
                region.start, context, tree.ancestor_mask, torch.tensor(tree.depths).numpy()
            )
            reaches = [Reach()] * self._config.num_hidden_layers
            call = TreeCall([nodes_of_row], cache.flat_layers, reaches)
            # A mask that hides nothing costs what one that does costs.
            mask = self._weight.new_zeros(1, 1, nodes, context + nodes)

            def own() -> Tensor:
                at = states
                for layer in decoder.layers:
                    at = layer(
                        at,
                        attention_mask=mask,
                        position_ids=positions,
                        past_key_values=cache,
                        use_cache=True,
                        position_embeddings=embeddings,
                    )
                return at

            def fused() -> None:
                at, added = states, None
                angles = self.tower.kit.angles(*embeddings)
                for _, block in self.blocks.each:
                    at, added = block.run(at, added, angles, call, None)

            layers = len(self.blocks.each)
            own_ms = self._clock(own) / layers
            plan.is_viewed = False
            fused_ms = self._clock(fused) / layers
            tower_ms = self._clock(
                lambda: self.tower(input_ids=ids, position_ids=positions, tree_call=call)
            )
        read = self._layer_bytes(context + nodes)
        share = read / (fused_ms / 1000) / self._bandwidth
        model_ms = tower_ms + (full_layers - layers) * fused_ms
        return BlockRow(
            self.name, context, nodes, own_ms, fused_ms, tower_ms, read, share, model_ms
        )

    def linear_rows(self, linears: list[Any], chosen: dict[Any, Any]) -> list[LinearRow]:
        from mmspec.target.gpu_linears import timed
        from mmspec.target.kernels.skinny import PADDED_ROWS

        alike: dict[Any, list[Any]] = {}
        for group in linears:
            alike.setdefault(group.shape, []).append(group)
        rows = []
        for shape, groups in alike.items():
            for count in PADDED_ROWS:
                with torch.no_grad():
                    times = timed(groups, shape, count, self._clock)
                size = shape.num_weights * shape.dtype.itemsize
                for tiling, ms in times.items():
                    way = "library" if tiling is None else str(tiling)
                    share = size / (ms / 1000) / self._bandwidth
                    is_chosen = chosen.get((shape, count)) == tiling
                    rows.append(
                        LinearRow(
                            self.name, shape.outs, shape.ins, count, way, ms, share, is_chosen
                        )
                    )
        return rows

    def _fill(self, cache: KVCache, row: int, context: int) -> None:
        heads = self._config.num_key_value_heads
        dim = self._config.hidden_size // self._config.num_attention_heads
        with cache.writing([row], [context]) as plan:
            plan.is_viewed = False
            for layer in cache.flat_layers:
                states = [
                    torch.randn(1, heads, context, dim, device=self._weight.device)
                    for _ in range(2)
                ]
                layer.update(*(s.to(self._weight.dtype) for s in states))
        cache.commit({row: range(context)})

    def _layer_bytes(self, columns: int) -> int:
        layer = self.model.get_decoder().layers[0]
        heads = self._config.num_key_value_heads
        dim = self._config.hidden_size // self._config.num_attention_heads
        weights = sum(parameter.nbytes for parameter in layer.parameters())
        return weights + 2 * columns * heads * dim * self._weight.element_size()


def built(kind: type[PreTrainedModel], config: Any, device: str) -> PreTrainedModel:
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    config._attn_implementation = "sdpa"
    with torch.device(device):
        return kind._from_config(config, dtype=dtype).eval().requires_grad_(False)


def cpu_ms(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return 1000 * (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--small", action="store_true", help="a toy, to see that it runs")
    parser.add_argument("--shapes", nargs="+", choices=[*SHAPES], default=[*SHAPES])
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--contexts", type=int, nargs="+", default=[16, 4096])
    parser.add_argument("--out", type=Path, default=Path("build/blocks.json"))
    arguments = parser.parse_args()
    if arguments.device == "cpu":
        if not arguments.small or os.environ.get("TRITON_INTERPRET") != "1":
            parser.error("--device cpu runs by an interpreter: set TRITON_INTERPRET=1, add --small")
    elif not torch.cuda.is_available():
        parser.error("no CUDA device here; --device cpu --small shows that the script runs")
    from mmspec.target.triton_kit import replayed_ms
    from mmspec.target.triton_parts import TritonKit

    machine = this_machine(threads=torch.get_num_threads())
    clock = replayed_ms if arguments.device == "cuda" else cpu_ms
    bandwidth = copy_bandwidth(arguments.device, clock, 2**20 if arguments.small else 2**31)
    block_rows: list[BlockRow] = []
    linear_rows: list[LinearRow] = []
    early: dict[str, bool] = {}
    for name in SMALL if arguments.small else arguments.shapes:
        kind, config, full_layers = (SMALL | SHAPES)[name]
        model = built(kind, config(arguments.layers), arguments.device)
        kit = TritonKit(clock=clock, device_type=arguments.device)
        blocks = quick_blocks(model, kit=kit)
        assert blocks is not None
        early[name] = kit.tilings.is_early
        bench = Bench(name, model, blocks, clock, bandwidth)
        for context in arguments.contexts:
            for nodes in arguments.nodes:
                block_rows.append(bench.row(context, nodes, full_layers))
        linear_rows += bench.linear_rows(kit.linears, kit.tilings.chosen)
        del model, blocks, kit, bench
        if arguments.device == "cuda":
            torch.cuda.empty_cache()
    report = {
        "note": "random weights: timings only",
        "mmspec": mmspec.__version__,
        "device": torch.cuda.get_device_name() if arguments.device == "cuda" else "interpreter",
        "layers": arguments.layers,
        "copy_bytes_per_s": bandwidth,
        "begin_early": early,
        "blocks": [asdict(row) for row in block_rows],
        "linears": [asdict(row) for row in linear_rows],
    }
    write_report(arguments.out, machine, report)
    show(block_rows, linear_rows, bandwidth, arguments.out)


def show(
    block_rows: list[BlockRow], linear_rows: list[LinearRow], bandwidth: float, out: Path
) -> None:
    layers = Table(
        "shape", "context", "nodes", "own, us a layer", "fused", "own / fused", "of bandwidth",
        "whole model, ms", "of node 0",
    )  # fmt: skip
    alone = {(r.shape, r.context): r.model_ms for r in block_rows if r.nodes == 1}
    for row in block_rows:
        first = alone.get((row.shape, row.context))
        layers.add_row(
            row.shape,
            f"{row.context}",
            f"{row.nodes}",
            f"{1000 * row.own_ms:.1f}",
            f"{1000 * row.fused_ms:.1f}",
            f"{row.own_ms / row.fused_ms:.2f}",
            f"{row.share:.0%}",
            f"{row.model_ms:.2f}",
            "" if first is None else f"{row.model_ms / first:.2f}",
        )
    linears = Table("shape", "outs", "ins", "rows", "way", "us", "of bandwidth", "chosen")
    for made in linear_rows:
        linears.add_row(
            made.shape,
            " ".join(str(out) for out in made.outs),
            f"{made.ins}",
            f"{made.rows}",
            made.way,
            f"{1000 * made.ms:.1f}",
            f"{made.share:.0%}",
            "x" if made.is_chosen else "",
        )
    console = Console(width=140)
    console.print(layers)
    console.print(linears)
    console.print(f"copy bandwidth {bandwidth / 1e12:.2f} TB/s; written to {out}")


if __name__ == "__main__":
    main()
