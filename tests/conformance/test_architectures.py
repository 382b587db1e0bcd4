"""Some of the architectures, and the table of all: `python -m tests.bench conformance` is the long form."""

import pytest
import transformers

from tests.conformance.families import CAUSAL, CLASSIFIERS
from tests.conformance.outcomes import outcome_of
from tests.conformance.table import PAGE, TABLE, TASKS, kept, page, row_of

# Those that once were wrong or ended in a traceback, and a few of each make.
LANGUAGE = (
    "bert", "blt", "deepseek_v2", "gemma3n_text", "gpt2", "jetmoe", "llama", "llama4_text", "mamba", "minicpm3",
    "mixtral", "opt", "phimoe", "prophetnet", "qwen3_next", "rembert", "rwkv", "xlm",
)  # fmt: skip
OF_CLASSES = (
    "canine", "deberta-v2", "funnel", "gpt2", "llama", "longformer", "qwen2", "roberta", "t5", "xlnet",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _as_transformers_warns(recwarn):
    """What transformers warns of while it builds its models is not ours."""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("task", "kind"),
    [*(("language model", kind) for kind in LANGUAGE), *(("classifier", kind) for kind in OF_CLASSES)],
)
def test_an_architecture_is_as_the_table_says(tmp_path, task, kind):
    outcome = outcome_of(kind, tmp_path / kind, classifies=task == "classifier")
    assert outcome.status in ("right", "refused"), outcome
    assert row_of(outcome) == kept()[task][kind]


def test_the_table_is_of_this_version_and_knows_no_wrong_number():
    """With another transformers: `python -m tests.conformance` makes it anew, and git shows what changed."""
    table = kept()
    assert table["transformers"] == transformers.__version__
    assert {task: set(table[task]) for task in TASKS} == {
        "language model": set(CAUSAL),
        "classifier": set(CLASSIFIERS),
    }
    rows = [row for task in TASKS for row in table[task].values()]
    assert not [row for row in rows if row["status"] == "wrong"]
    assert sum(row["status"] == "right" for row in rows) >= 300
    assert all(row["sentence"] for row in rows if row["status"] in ("refused", "not built"))


def test_the_page_is_the_tables():
    assert PAGE.read_text() == page(kept()), (
        f"run `python -m tests.conformance`, which writes {TABLE.name} and the page"
    )
