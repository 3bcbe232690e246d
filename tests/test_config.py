import pickle
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import pytest

import mmspec.config
from mmspec.build_drafters import DRAFTERS
from mmspec.config import CONFIG_DIR, Config, config_names, load_config
from mmspec.config.drafters import TreeConfig
from mmspec.errors import ConfigError


def write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_without_arguments_the_dataclasses_speak() -> None:
    assert load_config() == Config()


def test_every_section_can_be_imported_and_is_made_by_its_keys() -> None:
    for section in _sections(Config()):
        kind = type(section)
        assert getattr(mmspec.config, kind.__name__) is kind
        assert kind(**vars(section)) == section == pickle.loads(pickle.dumps(section))
        if isinstance(section, TreeConfig):  # its own keys stand behind a tree's
            with pytest.raises(TypeError, match="positional"):
                kind("a path")  # type: ignore[misc]


def _sections(section: object) -> Iterator[object]:
    yield section
    for value in vars(section).values():
        if is_dataclass(value):
            yield from _sections(value)


def test_default_yaml_states_every_default() -> None:
    assert load_config("default") == Config()
    text = (CONFIG_DIR / "default.yaml").read_text(encoding="utf-8")
    for section in vars(Config()).values():
        for name in vars(section):
            assert f"  {name}:" in text


@pytest.mark.parametrize("name", config_names())
def test_every_bundled_config_loads_by_name_and_by_path(name: str) -> None:
    assert load_config(name) == load_config(CONFIG_DIR / f"{name}.yaml")


def test_every_drafter_has_a_bundled_config_of_its_own() -> None:
    assert {load_config(name).drafter.name for name in config_names()} >= DRAFTERS.keys()


def test_plain_drafts_nothing() -> None:
    assert load_config("plain").drafter.name == "none"


def test_yaml_wins_over_defaults_and_overrides_over_yaml(tmp_path: Path) -> None:
    path = write(tmp_path, "decode: {max_nodes: 8, probe: false}\ndrafter: {name: none}\n")
    config = load_config(path, ["decode.max_nodes=32", "drafter.prompt_lookup.min_match=3"])
    assert config.decode.max_nodes == 32
    assert config.decode.probe is False
    assert config.drafter.name == "none"
    assert config.drafter.prompt_lookup.min_match == 3
    assert config.drafter.prompt_lookup.max_match == 32  # untouched


@pytest.mark.parametrize(
    "overrides",
    [
        ["decode.max_nodes=4", "model.device_map=auto"],
        {"decode.max_nodes": 4, "model.device_map": "auto"},
        {"decode": {"max_nodes": 4}, "model": {"device_map": "auto"}},
    ],
)
def test_dotlist_dotted_and_nested_overrides_mean_the_same(overrides: object) -> None:
    config = load_config(None, overrides)  # type: ignore[arg-type]
    assert (config.decode.max_nodes, config.model.device_map) == (4, "auto")


def test_the_last_override_of_a_key_wins() -> None:
    assert load_config(None, ["decode.max_nodes=4", "decode.max_nodes=5"]).decode.max_nodes == 5


def test_a_value_may_hold_an_equals_sign_and_a_key_may_be_set_to_null() -> None:
    config = load_config(None, ["model.path=a=b", "model.revision=null"])
    assert (config.model.path, config.model.revision) == ("a=b", None)


def test_two_loads_share_nothing() -> None:
    load_config().drafter.prompt_lookup.min_match = 9
    assert load_config().drafter.prompt_lookup.min_match == 2


def test_an_empty_file_or_section_says_nothing(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "# nothing yet\n")) == Config()
    assert load_config(write(tmp_path, "decode:\n  # max_nodes: 3\n")) == Config()


def test_a_file_in_the_working_folder_needs_its_ending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plain").mkdir()  # a folder of that name does not hide the bundled file
    (tmp_path / "plain.yaml").write_text("decode: {max_nodes: 3}", encoding="utf-8")
    assert load_config("plain").drafter.name == "none"
    assert load_config("plain.yaml").decode.max_nodes == 3


@pytest.mark.parametrize(
    ("override", "unknown", "nearest"),
    [
        ("decode.max_node=3", "decode.max_node", "decode.max_nodes"),
        ("max_nodes=3", "max_nodes", "decode.max_nodes"),
        ("decoder.max_nodes=3", "decoder", "decode"),
        ("drafter.min_match=3", "drafter.min_match", "drafter.prompt_lookup.min_match"),
        ("inputs.allow_https=1", "inputs.allow_https", "inputs.allow_http"),
        ("zzz=1", "zzz", "model, inputs, drafter, decode"),
        ("decode.zzz=1", "decode.zzz", "verifier"),
        ("drafter.medusa.heads=x", "drafter.medusa.heads", "Known here: drafter.medusa.path"),
        ("drafter.draft_model.model=x", "drafter.draft_model.model", "drafter.draft_model.path"),
    ],
)
def test_an_unknown_key_names_the_nearest(override: str, unknown: str, nearest: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, [override])
    assert f"unknown key {unknown!r}" in str(caught.value)
    assert nearest in str(caught.value).partition(unknown)[2]


def test_an_unknown_key_in_a_file_names_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "drafter:\n  prompt_lookup:\n    max_dept: 3\n")
    with pytest.raises(ConfigError, match=r"run\.yaml.*drafter\.prompt_lookup\.max_depth"):
        load_config(path)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("decode.max_nodes=many", "got 'many' (str), expected int"),
        ("decode.max_nodes=3.5", "got 3.5 (float), expected int"),
        ("decode.max_nodes=null", "got None (NoneType), expected int"),
        ("decode.max_nodes=[1,2]", "got [1, 2] (list), expected int"),
        ("decode.max_nodes.low=1", "got {'low': 1} (dict), expected int"),
        ("decode.probe=perhaps", "got 'perhaps' (str), expected bool"),
        ("drafter.prompt_lookup.min_confidence=high", "got 'high' (str), expected float"),
        ("drafter.retrieval.datastores=a.store", "expected list[str], as [a.store]."),
        ("drafter.retrieval.datastores={a: 1}", "got {'a': 1} (dict), expected list[str]."),
        ("model.revision={a: 1}", "got {'a': 1} (dict), expected str | None"),
        ("decode=3", "got 3, expected the keys verifier, controller, max_nodes, "),
    ],
)
def test_a_wrong_type_says_what_it_got_and_what_it_expected(override: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, [override])
    assert expected in str(caught.value)


@pytest.mark.parametrize("override", ["decode.max_nodes", "", "=3", " =3", ("decode.probe", True)])
def test_an_override_is_key_and_value(override: Any) -> None:
    with pytest.raises(ConfigError, match="expected key=value"):
        load_config(None, [override])


def test_overrides_of_a_config_object_are_refused() -> None:
    """Nobody would read them. Without any it is copied."""
    given = Config()
    with pytest.raises(ConfigError, match=r"decode.max_nodes=3.* set its own fields"):
        load_config(given, ["decode.max_nodes=3"])
    taken = load_config(given)
    assert taken == given and taken is not given and taken.decode is not given.decode


def test_one_string_is_not_a_list_of_overrides() -> None:
    with pytest.raises(ConfigError, match="expected a list"):
        load_config(None, "decode.max_nodes=3")


@pytest.mark.parametrize("value", ["[1, ", "${decode.", "${nowhere.to_be_found}", "???"])
def test_a_value_that_cannot_be_read_is_a_config_error(value: str) -> None:
    with pytest.raises(ConfigError):
        load_config(None, [f"model.path={value}"])


def test_a_missing_file_lists_the_names() -> None:
    with pytest.raises(ConfigError, match=r"'plane'.*plain"):
        load_config("plane")
    with pytest.raises(ConfigError, match="No config file"):
        load_config(Path("no/such/file.yaml"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", "got a YAML sequence, expected a mapping"),
        ("just words\n", "got a YAML scalar, expected a mapping"),
        ("decode: [1\n", "is not valid YAML"),
        ("decode: {max_nodes: 1}\ndecode: {max_nodes: 2}\n", "is not valid YAML"),
        ("model: !!python/object/apply:os.getcwd []\n", "is not valid YAML"),
        ("model: {path: '${decode.'}\n", "is not valid YAML"),
    ],
)
def test_a_bad_file_is_a_config_error(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path, text))


def test_a_file_that_is_not_text_is_a_config_error(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="UTF-8"):
        load_config(path)
