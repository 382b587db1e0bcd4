"""What is wrong with an audit is one sentence, before anything is trained."""

import pytest

from dataworth.command.cli import main


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "--model and --corpus and --queries is required, or --audit.problem"),
        (("--audit.problem", "digits", "--model", "m"), "--audit.problem digits brings its own: leave --model out"),
        (("--audit.problem", "nowhere"), "neither digits, nor demo, nor MODULE:FUNCTION"),
        (("--audit.problem", "digits", "--audit.methods", "magic"), "'magic' is no method; known: recommended"),
        (("--audit.problem", "digits", "--audit.subsets", "2"), "--audit.subsets"),
        (
            ("--audit.problem", "digits", "--audit.tune", "--audit.subsets", "5"),
            "--audit.tune: takes half of the subsets",
        ),
    ],
)
def test_what_is_wrong_is_a_sentence(monkeypatch, capsys, tmp_path, words, said):
    monkeypatch.setattr("sys.argv", ["dataworth", "audit", "--results", str(tmp_path / "out"), *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not (tmp_path / "out").exists()
