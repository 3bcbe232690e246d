"""Section `kernels`: every kernel beside its reference, on this device."""

from mmspec.attention.tree import LADDER
from mmspec.gpu_check import kv_cells, noise_cells, tree_cells
from mmspec.gpu_check.recorder import Recorder
from mmspec.gpu_check.setting import Setting


def check(setting: Setting, recorder: Recorder) -> None:
    """Tree attention by each backend, KV writes and commits, noise."""
    _check_noise(setting, recorder)
    _check_kv(setting, recorder)
    _check_attention(setting, recorder)


def _check_attention(setting: Setting, recorder: Recorder) -> None:
    passed: dict[str, int] = {rung.name: 0 for rung in LADDER}
    declined: dict[str, list[str]] = {rung.name: [] for rung in LADDER}
    worst: dict[str, float] = {rung.name: 0.0 for rung in LADDER}
    for cell in tree_cells.cells(setting):
        call = tree_cells.build(cell, setting.device)
        expected = tree_cells.reference(call)
        for rung in LADDER:
            what = f"attention by {rung.name}: {cell.text}"
            try:
                got = call.by(rung)
                if got is None:
                    declined[rung.name].append(cell.text)
                    continue
                error = tree_cells.error(got, expected)
            except Exception as failure:  # a kernel that does not compile costs no other's check
                recorder.check(False, f"{what}: {type(failure).__name__}: {failure}")
                continue
            bound = tree_cells.BOUNDS[cell.dtype]
            recorder.check(error <= bound, f"{what}: off by {error:.2g}, more than {bound:.0e}")
            passed[rung.name] += error <= bound
            worst[rung.name] = max(worst[rung.name], error)
    recorder.found(
        "attention",
        {name: {"passed": passed[name], "worst": worst[name], "declined": declined[name]}
         for name in passed},
    )  # fmt: skip


def _check_kv(setting: Setting, recorder: Recorder) -> None:
    reason = kv_cells.why_not(setting)
    if reason is not None:
        recorder.missing(f"KV kernels: {reason}")
        return
    try:
        found = list(kv_cells.failures(setting))
    except Exception as failure:
        found = [f"KV kernels: {type(failure).__name__}: {failure}"]
    for what in found:
        recorder.check(False, what)
    recorder.found("kv", {"failures": len(found)})


def _check_noise(setting: Setting, recorder: Recorder) -> None:
    if setting.device.type == "cpu":
        recorder.missing("noise on a GPU: this is the CPU, compared with itself")
    found = noise_cells.compare(setting)
    recorder.found("noise", found)
    recorder.check(found.are_bits_equal, "noise: other random bits than on the CPU")
    recorder.check(
        found.share <= noise_cells.MOST_DIFFERING,
        f"noise: {found.share:.1e} of its values differ from the CPU's",
    )
    recorder.check(
        found.most_error <= noise_cells.MOST_ERROR,
        f"noise: a value is off from the CPU's by {found.most_error:.1e}",
    )
