"""Conversations and pairs: the tokens and targets that TRL's SFTTrainer trains on, and their place in a corpus."""

import json
import re

import numpy as np
import pandas as pd
import pytest
import torch
import trl.chat_template_utils as templates
from datasets import Dataset
from transformers import AutoModelForCausalLM
from trl import SFTConfig, SFTTrainer

from dataworth.storage.corpus import CorpusStore
from dataworth.storage.errors import InputError
from dataworth.tasks.corpus.batches import IGNORED, corpus_batch, n_targets, window_targets
from dataworth.tasks.corpus.config import CorpusConfig, QueriesConfig
from dataworth.tasks.corpus.measured_losses import query_losses
from dataworth.tasks.corpus.steps import prepare_corpus, prepare_queries
from dataworth.tasks.model.config import ModelConfig
from dataworth.tasks.model.loading import load
from tests.reference.dense import negative_log_likelihood

# Of libraries, which TRL's trainer meets.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")

# Written here: like that of the instruct models that close what the user says, and end what the assistant says.
BRACKETS = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ ' ' + message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% endif %}{% endfor %}"
)
TEMPLATES = {
    "llama3": templates.llama3_training_chat_template,
    "qwen": templates.qwen2_5_training_chat_template,
    "gemma": templates.gemma_training_chat_template,
    "brackets": BRACKETS,
}
SIGNS = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|im_start|>", "<|im_end|>", "<start_of_turn>"]

TURNS = [
    {"role": "user", "content": "Where does the river run?"},
    {"role": "assistant", "content": "Down to the sea."},
    {"role": "user", "content": "And then?"},
    {"role": "assistant", "content": "A list of small things, and names."},
]
CHATS = [TURNS, TURNS[:2], [*TURNS[2:], *TURNS]]
PAIRS = [("The river", " runs down"), ("A list of ", "small things"), ("Where?\n", "There.</s>")]


@pytest.fixture
def checkpoint(checkpoints, tmp_path, tokenizer):
    """A small model whose tokenizer knows the signs of all templates; made with one of them."""

    def made(template):
        from transformers import PreTrainedTokenizerFast

        own = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer.backend_tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>"
        )
        own.add_special_tokens({"additional_special_tokens": [*SIGNS, "<end_of_turn>"]})
        own.chat_template = template
        model = AutoModelForCausalLM.from_pretrained(checkpoints["llama"], max_position_embeddings=512)
        model.resize_token_embeddings(len(own))
        model.save_pretrained(tmp_path / "model")
        own.save_pretrained(tmp_path / "model")
        return str(tmp_path / "model")

    return made


def prepared(tmp_path, model, rows, **options):
    path = tmp_path / "c.jsonl"
    path.write_text("".join(f"{json.dumps({'id': f'd{n}', 'source': 's', **row})}\n" for n, row in enumerate(rows)))
    config = CorpusConfig(files=[str(path)], **{"max_length": 256, **options})
    return CorpusStore.open(prepare_corpus(str(tmp_path / "store"), ModelConfig(name=model, device="cpu"), config))


def ours(corpus):
    """Token ids and labels of each window, without padding."""
    found = []
    for window in range(corpus.n_examples):
        ids, _, labels = corpus_batch(corpus, np.array([window]), torch.device("cpu"), 0)
        found.append((ids[0].tolist(), labels[0].tolist()))
    return found


def theirs(tmp_path, model, rows, **options):
    """Of SFTTrainer; the label of a first token is never a target."""
    settings = {"max_length": 256, "report_to": "none", "use_cpu": True, "output_dir": str(tmp_path / "trl"), **options}
    loaded = load(ModelConfig(name=model, device="cpu"))
    trainer = SFTTrainer(
        model=loaded.model,
        args=SFTConfig(**settings),
        train_dataset=Dataset.from_list(rows),
        processing_class=loaded.tokenizer,
    )
    return [(row["input_ids"], row["labels"]) for row in trainer.train_dataset]


def assert_the_same(one, two):
    assert [ids for ids, _ in one] == [ids for ids, _ in two]
    assert [labels[1:] for _, labels in one] == [labels[1:] for _, labels in two]


@pytest.mark.parametrize("name", TEMPLATES)
def test_conversations_are_what_trl_trains_on(tmp_path, checkpoint, name):
    model, rows = checkpoint(TEMPLATES[name]), [{"messages": turns} for turns in CHATS]
    corpus = prepared(tmp_path, model, rows)
    found = ours(corpus)
    assert_the_same(found, theirs(tmp_path, model, rows, assistant_only_loss=True))
    assert any(IGNORED in labels[3:-3] for _, labels in found)
    assert_the_same(ours(prepared(tmp_path, model, rows, loss="all")), theirs(tmp_path, model, rows))
    assert window_targets(corpus).tolist() == [sum(label != IGNORED for label in labels[1:]) for _, labels in found]


@pytest.mark.parametrize("name", ["llama3", "gemma"])
def test_what_is_taught_is_found_without_marks(tmp_path, checkpoint, name):
    """The training template's marks and the plain template's turns say the same."""
    rows = [{"messages": turns} for turns in CHATS]
    model = checkpoint(getattr(templates, f"{name}_chat_template"))
    plain = ours(prepared(tmp_path, model, rows))
    (tmp_path / "t.jinja").write_text(TEMPLATES[name])
    assert_the_same(plain, ours(prepared(tmp_path, model, rows, chat_template=str(tmp_path / "t.jinja"))))


def test_the_last_turn_alone(tmp_path, checkpoint):
    model, rows = checkpoint(TEMPLATES["brackets"]), [{"messages": turns} for turns in CHATS]
    tokenizer = load(ModelConfig(name=model, device="cpu")).tokenizer
    for turns, (_, labels) in zip(CHATS, ours(prepared(tmp_path, model, rows, loss="last")), strict=True):
        taught = [label for label in labels if label != IGNORED]
        assert tokenizer.decode(taught) == f" {turns[-1]['content']}</s>"


@pytest.mark.parametrize("halves", ["texts", "messages"])
def test_pairs_are_what_trl_trains_on(tmp_path, checkpoint, halves):
    model = checkpoint(TEMPLATES["qwen"])
    if halves == "texts":
        rows = [{"prompt": prompt, "completion": completion} for prompt, completion in PAIRS]
    else:
        rows = [{"prompt": turns[:-1], "completion": turns[-1:]} for turns in CHATS]
    corpus = prepared(tmp_path, model, rows)
    assert_the_same(ours(corpus), theirs(tmp_path, model, rows))
    assert_the_same(
        ours(prepared(tmp_path, model, rows, loss="all")), theirs(tmp_path, model, rows, completion_only_loss=False)
    )
    shorter = max(len(ids) for ids, _ in ours(corpus)) - 3
    cut = ours(prepared(tmp_path, model, rows, max_length=shorter))
    assert max(len(ids) for ids, _ in cut) == shorter
    assert_the_same(cut, theirs(tmp_path, model, rows, max_length=shorter))
    if halves == "texts":
        assert [row["text"] for row in corpus.documents()] == [
            prompt + completion.removesuffix("</s>") + "</s>" for prompt, completion in PAIRS
        ]


def test_texts_with_the_end_token_are_what_trl_trains_on(tmp_path, checkpoint):
    model, rows = checkpoint(TEMPLATES["qwen"]), [{"text": "The river runs"}, {"text": "down to the sea</s>"}]
    assert_the_same(ours(prepared(tmp_path, model, rows, eos=True)), theirs(tmp_path, model, rows))
    assert ours(prepared(tmp_path, model, rows))[0][0] == ours(prepared(tmp_path, model, rows, eos=True))[0][0][:-1]


def test_losses_are_those_of_the_targets_alone(tmp_path, checkpoint):
    """Of documents and queries: what the model loses, written out token by token."""
    model = checkpoint(TEMPLATES["brackets"])
    loaded = load(ModelConfig(name=model, device="cpu"))
    rows = [{"id": number, "messages": turns} for number, turns in enumerate(CHATS)]
    (tmp_path / "q.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    config, asked = ModelConfig(name=model, device="cpu"), QueriesConfig(file=str(tmp_path / "q.jsonl"))
    queries = CorpusStore.open(prepare_queries(str(tmp_path / "s"), config, asked))
    corpus = prepared(tmp_path, model, [{"messages": turns} for turns in CHATS])
    last = prepared(tmp_path, model, [{"messages": turns} for turns in CHATS], loss="last")
    for store in (corpus, last, queries):
        expected = [
            float(negative_log_likelihood(loaded.model.eval(), torch.tensor(ids), torch.tensor(labels)))
            for ids, labels in ours(store)
        ]
        np.testing.assert_allclose(query_losses(loaded, store), expected, rtol=1e-5)
    np.testing.assert_allclose(query_losses(loaded, queries), query_losses(loaded, last), rtol=1e-5)
    (first, *_) = queries.documents()
    assert first["text"][first["n_prompt_characters"] :] == f" {TURNS[-1]['content']}</s>"


def test_a_conversation_that_waits_is_answered_by_the_model(tmp_path, checkpoint):
    model = checkpoint(TEMPLATES["llama3"])
    (tmp_path / "q.jsonl").write_text(json.dumps({"id": "q", "messages": TURNS[:3]}) + "\n")
    config = QueriesConfig(file=str(tmp_path / "q.jsonl"), max_new_tokens=3)
    queries = CorpusStore.open(prepare_queries(str(tmp_path / "s"), ModelConfig(name=model, device="cpu"), config))
    ((ids, labels),) = ours(queries)
    tokenizer = load(ModelConfig(name=model, device="cpu")).tokenizer
    asked = tokenizer.apply_chat_template(TURNS[:3], add_generation_prompt=True, return_dict=True)["input_ids"]
    assert ids[: len(asked)] == asked
    assert labels == [*[IGNORED] * len(asked), *ids[len(asked) :]]
    assert 1 <= len(ids) - len(asked) <= 3


def test_a_corpus_of_masks_is_its_own(tmp_path, checkpoint):
    """Which tokens are taught decides the gradient, and so the content."""
    model, rows = checkpoint(TEMPLATES["qwen"]), [{"messages": TURNS}]
    one, two = (prepared(tmp_path, model, rows, loss=loss) for loss in ("answers", "last"))
    assert one.contents[0] != two.contents[0]
    assert one.tokens(0).tolist() == two.tokens(0).tolist()
    assert (one.tokens(0) >= 0).all()


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_conversations_are_read_from_tables(tmp_path, checkpoint, kind):
    model = checkpoint(TEMPLATES["qwen"])
    rows = [{"id": f"d{n}", "source": "s", "messages": turns} for n, turns in enumerate(CHATS)]
    path = tmp_path / f"t.{kind}"
    frame = pd.DataFrame(rows)
    frame.to_parquet(path) if kind == "parquet" else frame.to_json(path, orient="records", lines=True)
    config = CorpusConfig(files=[str(path)], max_length=256)
    read = CorpusStore.open(prepare_corpus(str(tmp_path / "t"), ModelConfig(name=model, device="cpu"), config))
    assert ours(read) == ours(prepared(tmp_path, model, [{"messages": turns} for turns in CHATS]))


# An end of a window within a conversation, of which nothing is taught.
BAD = {
    "no list": ({"messages": "hello"}, "field 'messages': expected a list of messages, got str"),
    "empty": ({"messages": []}, "field 'messages': expected a list of messages, got an empty list"),
    "no role": ({"messages": [{"content": "x"}]}, "message 1: expected an object with `role` and `content`"),
    "shared": ({"messages": [{"from": "a", "value": "b"}]}, "write them as `role` and `content`"),
    "picture": (
        {"messages": [{"role": "user", "content": [{"type": "image", "url": "x"}]}]},
        "message 1: has a part that is no text",
    ),
    "refused": ({"messages": TURNS[1:]}, "the chat template refuses this conversation"),
    "tools": ({"messages": TURNS, "tools": "{"}, "field 'tools': broken JSON"),
    "no answer": ({"prompt": TURNS[:1], "completion": TURNS[2:3]}, "the completion has no turn of the assistant"),
    "taken": (
        {"messages": TURNS, "chat_template_kwargs": {"max_length": 9}},
        "the variable 'max_length' would say how",
    ),
    "both": ({"messages": TURNS, "text": "x"}, "has text and messages; say which the model was trained on"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_conversations(tmp_path, checkpoint, name):
    row, message = BAD[name]
    model = checkpoint(TEMPLATES["gemma"])
    with pytest.raises(InputError, match=rf"c\.jsonl, line 2.*{re.escape(message)}"):
        prepared(tmp_path, model, [{"messages": TURNS}, row])
    kept = prepared(tmp_path, model, [{"messages": TURNS}, row], on_bad_row="skip")
    assert (kept.n_documents, kept.n_rejected) == (1, 1)
    assert message in kept.rejected()[0]


def test_a_model_without_a_template_says_what_to_pass(tmp_path, checkpoint):
    model = checkpoint(None)
    with pytest.raises(InputError, match=r"no chat template that writes it; pass --corpus\.chat_template FILE"):
        prepared(tmp_path, model, [{"messages": TURNS}])
    (tmp_path / "t.jinja").write_text(BRACKETS)
    assert prepared(tmp_path, model, [{"messages": TURNS}], chat_template=str(tmp_path / "t.jinja")).n_examples == 1


def test_a_template_that_writes_turns_otherwise_later_is_refused(tmp_path, checkpoint):
    changing = (
        "{% for message in messages %}{{ message['role'] + (': ' if loop.last else ' said: ') + message['content'] }}"
        "{% endfor %}"
    )
    with pytest.raises(InputError, match="writes turns otherwise where others follow"):
        prepared(tmp_path, checkpoint(changing), [{"messages": TURNS}])


def test_what_is_cut_off_before_anything_is_taught_has_no_window(tmp_path, checkpoint):
    model = checkpoint(TEMPLATES["qwen"])
    corpus = prepared(tmp_path, model, [{"messages": TURNS}, {"prompt": "a", "completion": "b"}], max_length=16)
    assert corpus.column("n_windows").to_pylist() == [0, 1]
    ids, _, labels = corpus_batch(corpus, np.array([0]), torch.device("cpu"), 0)
    assert ids.shape == (1, 4)
    assert n_targets(labels).tolist() == [2]


FIRST = "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] or '' }}</s>{% endfor %}"


@pytest.mark.parametrize("content", ["", None, "s", 3])
def test_a_first_turn_of_the_assistant_is_found_or_refused(tmp_path, checkpoint, content):
    model, turn = checkpoint(FIRST), {"role": "assistant", "content": content}
    with pytest.raises(InputError, match=r"c\.jsonl, line 1.*(which tokens are the assistant's|expected text)"):
        prepared(tmp_path, model, [{"messages": [turn, TURNS[0]]}])
    ((_, labels),) = ours(prepared(tmp_path, model, [{"messages": [TURNS[1], TURNS[0]]}]))
    tokenizer = load(ModelConfig(name=model, device="cpu")).tokenizer
    assert tokenizer.decode([label for label in labels if label != IGNORED]) == "Down to the sea.</s>"


def test_queries_are_written_by_the_template_of_the_corpus(tmp_path, checkpoint):
    model = checkpoint(None)
    (tmp_path / "q.jsonl").write_text(json.dumps({"id": "q", "messages": TURNS[:3]}) + "\n")
    (tmp_path / "t.jinja").write_text(BRACKETS)
    config, asked = ModelConfig(name=model, device="cpu"), QueriesConfig(file=str(tmp_path / "q.jsonl"))
    with pytest.raises(InputError, match="no chat template that writes it"):
        prepare_queries(str(tmp_path / "s"), config, asked)
    (row,) = CorpusStore.open(
        prepare_queries(str(tmp_path / "s"), config, asked, str(tmp_path / "t.jinja"))
    ).documents()
    assert row["text"].startswith("<s>[INST] Where does the river run? [/INST] Down to the sea.</s>[INST]")


def test_what_is_wrong_for_every_row_is_not_skipped(tmp_path, checkpoint):
    rows = [{"text": "The river runs down to the sea."}, {"messages": TURNS}]
    with pytest.raises(InputError, match="no chat template that writes it"):
        prepared(tmp_path, checkpoint(None), rows, on_bad_row="skip")


def test_tools_of_a_table_are_written_as_those_of_lines(tmp_path, checkpoint):
    """Rows of a table have null where other rows have something."""
    model = checkpoint(TEMPLATES["qwen"])
    calls = [{"function": {"name": name, "arguments": {key: "2"}}} for name, key in (("tell", "city"), ("ask", "day"))]
    tools = [{"type": "function", "function": {"name": "tell", "description": "Tells."}}]
    rows = [
        {"messages": [TURNS[0], {"role": "assistant", "content": "", "tool_calls": [call]}], "tools": tools}
        for call in calls
    ]
    lines = ours(prepared(tmp_path, model, rows, max_length=500))
    pd.DataFrame([{"id": f"d{n}", "source": "s", **row} for n, row in enumerate(rows)]).to_parquet(
        tmp_path / "t.parquet"
    )
    config = CorpusConfig(files=[str(tmp_path / "t.parquet")], max_length=500)
    table = CorpusStore.open(prepare_corpus(str(tmp_path / "t"), ModelConfig(name=model, device="cpu"), config))
    assert ours(table) == lines
