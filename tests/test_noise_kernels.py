"""The noise in Triton, under its interpreter: the bits and values of the CPU's."""

import pytest
import torch

from mmspec import noise
from mmspec.noise import DRAFT_STREAM, Place, gumbel

pytest.importorskip("triton", reason="Triton is not installed")

from interpreted import DEVICE

PLACES = [
    Place(0, 0, 0),
    Place(7, 3, 11),
    Place(2**64 - 1, 2**32 - 1, 2**31),
    Place(2**63, 1, 2**32 - 1),
    Place(0x123456789ABCDEF0, 0, 70_000),
]


@pytest.fixture(scope="module", autouse=True)
def _interpreted() -> None:
    if DEVICE != "cpu":
        pytest.skip("a GPU does not interpret")


def on_cpu(place: Place, vocab_size: int, stream: int = 0) -> torch.Tensor:
    return gumbel(place.seed, place.position, vocab_size, sample=place.sample, stream=stream)


@pytest.mark.parametrize("vocab_size", [1, 3, 4, 1023, 1024, 2051])
@pytest.mark.parametrize("stream", [0, DRAFT_STREAM + 5])
def test_the_noise_of_many_places_is_the_cpus(vocab_size: int, stream: int) -> None:
    from mmspec.noise_kernels import gumbel_at

    # Each another stream, as the nodes of a drawn level have it.
    places = [place._replace(stream=stream + n) for n, place in enumerate(PLACES)]
    found = gumbel_at(places, vocab_size, device="cpu")
    # numpy's logarithms are not torch's: a last bit may differ; a wrong word would tell.
    expected = torch.stack([on_cpu(place, vocab_size, place.stream) for place in places])
    torch.testing.assert_close(found, expected, rtol=2**-22, atol=2**-22)
    assert (found != expected).float().mean() < 1e-3


def test_the_noise_of_a_few_tokens_is_that_of_the_whole_vocabulary() -> None:
    from mmspec.noise_kernels import gumbel_at, gumbel_of

    tokens = torch.tensor([0, 1, 2, 3, 4, 1022, 1023, 2050, 7, 7])
    for place in PLACES:
        whole = gumbel_at([place], 2051, device="cpu")[0]
        assert torch.equal(gumbel_of(place, tokens), whole[tokens])
    assert gumbel_of(PLACES[0], tokens[:0]).shape == (0,)


@pytest.mark.parametrize("vocab_size", [3, 1024, 2500])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_choice_is_that_of_the_noise_written_out(vocab_size: int, dtype: torch.dtype) -> None:
    from mmspec.noise_kernels import choose

    places = [PLACES[i] for i in (0, 1, 1, 1, 2, 3, 3, 0)]
    scores = torch.randn(8, vocab_size, dtype=dtype)
    scores[3, torch.randperm(vocab_size)[vocab_size // 2 :]] = -torch.inf
    scores[4] = scores[5] = -torch.inf
    scores[4, vocab_size - 1] = -3.0
    tokens, values = choose(scores, places)
    expected = noise.choose(scores, places)
    assert tokens.tolist() == expected[0].tolist()
    assert values.tolist() == expected[1].tolist()
    assert values[5] == -torch.inf  # nothing to choose: told by the value


def test_a_nan_is_not_lost() -> None:
    from mmspec.noise_kernels import choose

    scores = torch.randn(2, 1500)
    scores[1, 1234] = torch.nan
    tokens, values = choose(scores, [PLACES[1]] * 2)
    assert tokens[1] == 1234
    assert values.isnan().tolist() == [False, True]


def test_on_a_gpu_the_kernels_are_what_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    from mmspec import noise_kernels

    expected = [gumbel(7, 11, 50, sample=3), gumbel(7, 11, 50, token_ids=torch.tensor([4, 9]))]
    calls = list[str]()
    for name in ("gumbel_at", "gumbel_of", "choose"):
        own = getattr(noise_kernels, name)

        def noted(*args: object, own: object = own, name: str = name, **options: object) -> object:
            calls.append(name)
            return own(*args, **options)  # type: ignore[operator]

        monkeypatch.setattr(noise_kernels, name, noted)
    monkeypatch.setattr(noise._KERNELS, "on", lambda device: noise_kernels)
    found = [gumbel(7, 11, 50, sample=3), gumbel(7, 11, 50, token_ids=torch.tensor([4, 9]))]
    noise.choose(torch.randn(2, 50), PLACES[:2])
    assert calls == ["gumbel_at", "gumbel_of", "choose"]
    for own, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(own, theirs, rtol=2**-22, atol=2**-22)
    assert noise.differing_share("cpu", vocab_size=300, positions=3) < 1e-2


@pytest.mark.gpu
def test_the_share_of_values_that_differ_on_a_gpu_is_below_one_in_ten_million() -> None:
    assert noise.differing_share("cuda") < 1e-7
