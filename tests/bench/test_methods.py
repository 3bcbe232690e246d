import pytest

from mmspec.bench.methods import PLAIN, parse_method, parse_peer, standard_methods
from mmspec.build_drafters import DRAFTERS
from mmspec.errors import ConfigError


def test_the_field_is_there_without_being_named() -> None:
    names = [method.name for method in standard_methods()]
    assert names[:5] == [
        "transformers",
        "transformers lookup 5",
        "transformers lookup 10",
        "transformers lookup 20",
        PLAIN,
    ]
    assert names[5:] == [f"mmspec {name}" for name in DRAFTERS if name != "none"]
    assisted = standard_methods(draft_model="small")[4]
    assert (assisted.name, assisted.draft_model) == ("transformers assisted", "small")
    assert [m.name for m in standard_methods(("prompt_lookup",), peers=False)] == [
        PLAIN,
        "mmspec prompt_lookup",
    ]


def test_a_method_is_a_name_with_overrides_and_request_fields() -> None:
    method = parse_method("wide one: decode.max_nodes=48 drafter.name=prompt_lookup speculate=true")
    assert method.name == "mmspec wide one"
    assert method.overrides == ("decode.max_nodes=48", "drafter.name=prompt_lookup")
    assert method.options == {"speculate": True}


def test_a_peer_is_a_name_with_arguments_of_generate() -> None:
    peer = parse_peer("3-grams: prompt_lookup_num_tokens=10 max_matching_ngram_size=3")
    assert peer.name == "transformers 3-grams"
    assert peer.options == {"prompt_lookup_num_tokens": 10, "max_matching_ngram_size": 3}
    assert peer.is_lookup
    assisted = parse_peer("draft: assistant_model=/a folder/small num_assistant_tokens=4")
    assert assisted.draft_model == "/a folder/small"
    assert assisted.options == {"num_assistant_tokens": 4}


@pytest.mark.parametrize(
    ("parse", "text", "told"),
    [
        (parse_method, "no colon", "expected 'NAME: key=value ...'"),
        (parse_method, "name: nothing", "expected 'NAME: key=value ...'"),
        (parse_method, ": decode.max_nodes=3", "expected 'NAME: key=value ...'"),
        (parse_method, "hot: temperature=1", "may set"),
        (parse_method, "x: speculat=true", "'speculat' is no dotted key"),
        (parse_peer, "x: do_sample=true", "the same for all"),
        (parse_peer, "x: a=[", "not valid YAML"),
    ],
)
def test_a_mistake_names_what_was_expected(parse: object, text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told.replace("...", r"\.\.\.")):
        parse(text)  # type: ignore[operator]


def test_an_unknown_drafter_is_told() -> None:
    with pytest.raises(ConfigError, match="'nobody': expected one of "):
        standard_methods(("nobody",))
