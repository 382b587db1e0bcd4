"""One configuration, every door: options, files, and one line for what is wrong."""

import shlex

import pytest
from click.testing import CliRunner

from flows.cli import cli
from flows.config import ValueConfig
from flows.options import ConfiguredCommand, command_line, configuration, options
from storage.errors import InputError

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


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "--model is required; --corpus is required; --queries is required; --results is required"),
        ({**NEEDED, "projection__rank": "0"}, "--projection.rank: input should be greater than or equal to 1, got '0'"),
        ({**NEEDED, "projection__rank": "x"}, "--projection.rank: input should be a valid integer"),
        ({**NEEDED, "config_file": "gone.yaml"}, "gone.yaml: cannot be read"),
        ({**NEEDED, "sources__game": "path", "sources__semivalue": "banzhaf"}, "path values are averages along a path"),
        ({**NEEDED, "sources__game": "newton", "scoring__layers": ("*",)}, "the game newton is over all sources and"),
    ],
)
def test_wrong_options(given, message):
    with pytest.raises(InputError) as caught:
        configuration(ValueConfig, given)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("projection: {rnk: 4}", "projection.rnk: no such option"),
        ("projection: 4", "--projection: input should be a valid dictionary"),
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
