"""One configuration, every door: options, files, and one line for what is wrong."""

import shlex

import pytest
from click.testing import CliRunner

from dataworth.command.cli import cli
from dataworth.command.options import ConfiguredCommand, command_line, configuration, options
from dataworth.config import ValueConfig, run_title
from dataworth.storage.errors import InputError
from dataworth.tasks.model.config import ModelConfig

NEEDED = {"model__name": "m", "corpus__files": ("a", "b"), "queries__file": "q", "results": "r"}


def test_every_field_is_an_option_with_a_description():
    found = {flag: option for option in options(ValueConfig) for flag in option.opts}
    for flag in ("--model", "--corpus", "--projection.rank", "--curvature.damping.value", "--scoring.save_matrix"):
        assert found[flag].help


def test_options_go_over_the_file_and_the_file_over_the_defaults(tmp_path):
    for name, text in (
        ("c.yaml", "projection: {rank: 4, seed: 9}\nsources: {confidence: 0.9}\n"),
        ("c.toml", "[projection]\nrank = 4\nseed = 9\n[sources]\nconfidence = 0.9\n"),
    ):
        (tmp_path / name).write_text(text)
        given = {**NEEDED, "config_file": str(tmp_path / name), "projection__rank": "8", "scoring__top_k": None}
        config = configuration(ValueConfig, given)
        assert (config.projection.rank, config.projection.seed, config.sources.confidence) == (8, 9, 0.9)
        assert config.scoring.top_k == 20
        assert config.corpus.files == ["a", "b"]


def test_a_pattern_of_checkpoints_is_its_folders_by_their_numbers(tmp_path):
    for name in ("checkpoint-1000", "checkpoint-200", "checkpoint-best", "other"):
        (tmp_path / "run" / name).mkdir(parents=True)
    (tmp_path / "run" / "checkpoint-1").touch()
    (tmp_path / "c.yaml").write_text(f"model: {{name: {tmp_path}/run/checkpoint-*}}\n")
    expected = [f"{tmp_path}/run/checkpoint-{name}" for name in ("200", "1000", "best")]
    without = {name: value for name, value in NEEDED.items() if name != "model__name"}
    for given in (
        {**NEEDED, "model__name": (f"{tmp_path}/run/checkpoint-*",)},
        {**without, "config_file": tmp_path / "c.yaml"},
    ):
        assert configuration(ValueConfig, given).model.name == expected
    nothing = (f"{tmp_path}/run/of-*",)
    assert configuration(ValueConfig, {**NEEDED, "model__name": nothing}).model.name == list(nothing)


def test_a_file_has_the_home_folder_as_a_shell_has_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    (tmp_path / "c.yaml").write_text("store: ~/store\ncorpus: {files: [~/c.jsonl, '~']}\n")
    given = {name: value for name, value in NEEDED.items() if name != "corpus__files"}
    config = configuration(ValueConfig, {**given, "config_file": tmp_path / "c.yaml"})
    assert (config.store, config.corpus.files) == ("/home/me/store", ["/home/me/c.jsonl", "~"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "--model is required; --corpus is required; --queries is required; --results is required"),
        ({**NEEDED, "projection__rank": "0"}, "--projection.rank: input should be greater than or equal to 1, got '0'"),
        ({**NEEDED, "projection__rank": "x"}, "--projection.rank: input should be a valid integer"),
        ({**NEEDED, "config_file": "gone.yaml"}, "gone.yaml: cannot be read"),
        ({**NEEDED, "sources__game": "path", "sources__semivalue": "banzhaf"}, "path values are no semivalue"),
        ({**NEEDED, "sources__game": "newton", "scoring__layers": ("*",)}, "the game newton is over all sources and"),
        ({**NEEDED, "model__name": ("m", "m")}, "--model: m is given twice, got ['m', 'm']"),
        ({**NEEDED, "model__name": ("a/m", "b", "./a//m/")}, "--model: ./a//m/ is given twice"),
        ({**NEEDED, "model__name": ("m", "")}, "--model: string should have at least 1 character"),
        (
            {**NEEDED, "model__name": ("m", "n"), "model__base": "b", "sources__game": "retrain"},
            "the game retrain is played from --model.base, not from checkpoints: pass one --model",
        ),
    ],
)
def test_wrong_options(given, message):
    with pytest.raises(InputError) as caught:
        configuration(ValueConfig, given)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("projection: {rnk: 4}", "projection.rnk: no such option; did you mean projection.rank?"),
        ("result: x", "result: no such option; did you mean results?"),
        ("curvatur: {draws: 4}", "curvatur: no such option; did you mean curvature?"),
        ("top_k: 4", "top_k: no such option; did you mean scoring.top_k?"),
        ("nothing: 4", "nothing: no such option"),
        ("1: 2", "1: no such option, names are text"),
        ("projection: 4", "projection: expected a group of values, such as projection.kind, got 4"),
        ("projection:", "projection: expected a group of values, such as projection.kind, got None"),
        ("gradients: [a]", "gradients: expected a group of values, such as gradients."),
        ("scoring: {layers: x}", "--scoring.layers: expected a list, got 'x'"),
        ("projection: {rank: 4, rank: 5}", "c.yaml: broken configuration ('rank' comes twice"),
        ("projection: {rank: 4}\nprojection: {seed: 5}", "c.yaml: broken configuration ('projection' comes twice"),
        ("store: [a]", "--store: input should be a valid string, got ['a']"),
        ("scoring: {save_matrix: maybe}", "--scoring.save_matrix: input should be a valid boolean"),
        ("[1]", "expected names and values, got list"),
        ("a: [", "broken configuration"),
        ("\x00", "broken configuration"),
    ],
)
def test_wrong_files(tmp_path, text, message):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(InputError) as caught:
        configuration(ValueConfig, {**NEEDED, "config_file": str(tmp_path / "c.yaml")})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def parsed(*words):
    command = ConfiguredCommand("value", params=options(ValueConfig), callback=lambda **given: given)
    return command.main(list(words), standalone_mode=False)


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ([], None),
        (["--scoring.save_matrix"], True),
        (["--no-scoring.save_matrix"], False),
        *((["--scoring.save_matrix", said], True) for said in ("true", "True", "yes", "on", "1")),
        *((["--scoring.save_matrix", said], False) for said in ("false", "FALSE", "no", "off", "0")),
        (["--scoring.save_matrix=true"], True),
        (["--scoring.save_matrix=false"], False),
    ],
)
def test_a_flag_may_say_yes_or_no(words, value):
    for before, after in (([], []), (["--corpus", "a", "b"], ["--results", "r"])):
        given = parsed(*before, *words, *after)
        assert given["scoring__save_matrix"] is value
        assert given["corpus__files"] == tuple(before[1:])
        assert given["results"] == (after[1] if after else None)


def test_what_says_yes_or_no_may_be_the_value_of_another_option():
    for words in (["--corpus", "true", "false"], ["--corpus=true", "false"]):
        assert parsed("--scoring.save_matrix", *words)["corpus__files"] == ("true", "false")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--scoring.save_matrix", "maybe"], "--scoring.save_matrix: expected true or false, got 'maybe'"),
        (["--scoring.save_matrix="], "--scoring.save_matrix: expected true or false, got ''"),
        (["--no-scoring.save_matrix", "true"], "--no-scoring.save_matrix: says no by itself and takes no value, got"),
        (["--no-scoring.save_matrix=false"], "--no-scoring.save_matrix: says no by itself and takes no value, got"),
    ],
)
def test_a_flag_says_nothing_else(words, message):
    with pytest.raises(InputError, match=message):
        parsed(*words)


def test_groups_of_a_file_may_be_merged(tmp_path):
    (tmp_path / "c.yaml").write_text("projection: {<<: {rank: 4, seed: 1}, seed: 3}\n")
    config = configuration(ValueConfig, {**NEEDED, "config_file": str(tmp_path / "c.yaml")})
    assert (config.projection.rank, config.projection.seed) == (4, 3)


def test_models_are_one_or_several_in_files_and_on_the_command_line(tmp_path):
    path = tmp_path / "c.yaml"
    for text, names in (("m", ["m"]), ("[m, n]", ["m", "n"])):
        path.write_text(f"model: {{name: {text}, base: b}}\n")
        config = configuration(ValueConfig, {**NEEDED, "model__name": None, "config_file": str(path)})
        assert config.model.name == names
        assert [(each.name, each.base) for each in config.model.checkpoints] == [(name, "b") for name in names]
    for words in (["--model", "m", "--model", "n"], ["--model", "m", "n"], ["--model=m", "--model=n"]):
        command = ConfiguredCommand("value", params=options(ValueConfig), callback=lambda **given: given)
        assert command.main(words, standalone_mode=False)["model__name"] == ("m", "n")


def test_a_run_of_several_models_is_one_of_each():
    config = configuration(ValueConfig, {**NEEDED, "model__name": ("m", "n"), "model__dtype": "float32"})
    assert [one.model.only for one in config.by_checkpoint] == list(config.model.checkpoints)
    assert all(one.corpus == config.corpus for one in config.by_checkpoint)
    with pytest.raises(ValueError, match="expected one checkpoint, got 2"):
        _ = config.model.only


def test_parameters_of_one_checkpoint_are_those_of_a_run_of_one():
    """In code, and in the form of a deployment, whose parameters are checked against the schema."""
    one = ModelConfig(name="m", exclude=["head"])
    config = ValueConfig.model_validate(
        {"model": one, "corpus": {"files": ["c"]}, "queries": {"file": "q"}, "results": "r"}
    )
    assert config.model.checkpoints == (one,)
    name = ValueConfig.model_json_schema()["$defs"]["ModelsConfig"]["properties"]["name"]
    assert [kind["type"] for kind in name["anyOf"]] == ["array", "string"]
    assert name["description"]


def test_the_title_says_how_many_checkpoints():
    assert run_title(["runs/m"], ["data/c.jsonl"]) == "m on c.jsonl"
    assert run_title(["a/m", "b/n"], ["c.jsonl", "d"]) == "2 checkpoints (m, n) on c.jsonl, d"


def test_help_of_every_command():
    runner = CliRunner()
    for name in cli.commands:
        result = runner.invoke(cli, [name, "--help"])
        assert result.exit_code == 0
        assert "Usage" in result.output


@pytest.mark.parametrize(
    "further",
    [
        {},
        {"corpus__files": ("with a space", "it's", "--odd"), "results": "-r", "store": "s3://bucket/of ours"},
        {
            "projection__ranks": ("*.mlp.*=0.25", "*=0.5"),
            "projection__kind": "pca",
            "curvature__damping__value": "1e-3",
        },
        {"model__name": ("run/step 800", "run/step-1000", "-odd")},
        {"scoring__save_matrix": True, "scoring__sources": ("news*",), "sources__by": ("publisher>section", "source")},
        {
            "sources__game": "newton",
            "sources__fallback": False,
            "model__base": "b$HOME",
            "queries__max_new_tokens": "3",
        },
    ],
)
def test_a_command_line_gives_its_configuration_again(further):
    config = configuration(ValueConfig, {**NEEDED, **further})
    program, command, *words = shlex.split(command_line("value", config))
    assert (program, command) == ("dataworth", "value")
    found = []
    parsed = ConfiguredCommand(
        "value", params=options(ValueConfig), callback=lambda **given: found.append(configuration(ValueConfig, given))
    )
    parsed.main(words, standalone_mode=False)
    assert found == [config]


@pytest.mark.parametrize(
    ("further", "game"),
    [
        ({}, "additive"),
        ({"model__base": "theta_0"}, "newton"),
        ({"model__base": "theta_0", "sources__game": "path"}, "path"),
        ({"model__base": "theta_0", "scoring__layers": ("*.mlp.*",)}, "additive"),
        ({"model__base": "theta_0", "projection__kind": "factgrass"}, "additive"),
    ],
)
def test_the_game_nobody_named(further, game):
    config = configuration(ValueConfig, {**NEEDED, **further})
    assert config.settled(classifies=True).sources.game == game
    assert config.settled(classifies=False).sources.game == ("additive" if game == "newton" else game)


@pytest.mark.parametrize(
    ("further", "game"),
    [
        ({"training__epochs": 2}, "merged"),
        ({"training__epochs": 3}, "merged"),  # as by default, and said
        ({"training__epochs": 2, "sources__trainings": 9}, "additive"),
        ({"training__epochs": 2, "model__name": ("one", "two")}, "additive"),
        ({"training__epochs": 2, "scoring__layers": ("*.mlp.*",)}, "additive"),
        ({"training__epochs": 2, "model__base": None}, "additive"),
        ({"training__epochs": 2, "sources__projection_seeds": 2}, "additive"),
        ({}, "additive"),
    ],
)
def test_whoever_says_how_a_model_was_trained_gets_what_was_taught(further, game):
    config = configuration(ValueConfig, {**NEEDED, "model__base": "theta_0", **further})
    again = ValueConfig.model_validate(config.model_dump(mode="json"))
    for one in (config, again):
        assert one.settled(classifies=False).sources.game == game
        assert one.settled(classifies=True).sources.game in ("newton", "additive")
