"""What people really have, from a file to scores, against one text at a time by autograd."""

import json

import pytest
import torch
import transformers as hf
from tokenizers import processors

from dataworth.storage.corpus import CorpusStore
from dataworth.storage.errors import InputError
from dataworth.tasks.corpus.config import CorpusConfig, QueriesConfig
from dataworth.tasks.corpus.steps import prepare_corpus, prepare_queries
from dataworth.tasks.curvature.config import CurvatureConfig
from dataworth.tasks.model.config import ModelConfig
from dataworth.tasks.model.loading import load
from dataworth.tasks.projection.config import ProjectionConfig
from dataworth.tasks.projection.steps import make_bases
from tests.conformance.tokenizers import MAKES
from tests.harness.pipeline import Pipeline, assert_same_scores, document_scores, matrix_by_id
from tests.reference.checkpoints import LLAMA, SIZE, TEXTS
from tests.reference.dense import dense_gradients, dense_scores

PLAIN = CurvatureConfig(kind="none")
N_CLASSES = 3
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}


def lines(path, rows):
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def saved(folder, configuration, kind, tokenizer, **settings):
    """A small random checkpoint."""
    torch.manual_seed(5)
    model = kind(configuration(vocab_size=len(tokenizer), **settings))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def class_gradients(model, layers, ids, label):
    """Flat gradients of one text's loss by autograd, biases last."""
    model.zero_grad()
    model.requires_grad_(True)
    (-model(input_ids=ids[None]).logits[0].log_softmax(-1)[label]).backward()
    found = []
    for layer in layers:
        weight = layer.module.weight.grad
        weight = weight.T if isinstance(layer.module, hf.pytorch_utils.Conv1D) else weight
        parts = [weight] if layer.module.bias is None else [weight, layer.module.bias.grad[:, None]]
        found.append(torch.cat(parts, dim=1).flatten().double().numpy())
    return found


@pytest.mark.parametrize(
    ("configuration", "kind", "settings"),
    [
        pytest.param(hf.LlamaConfig, hf.LlamaForSequenceClassification, LLAMA | {"pad_token_id": 1}, id="Llama, pad 1"),
        pytest.param(hf.Qwen2Config, hf.Qwen2ForSequenceClassification, LLAMA | {"pad_token_id": 1}, id="Qwen2, pad 1"),
        pytest.param(
            hf.GPT2Config, hf.GPT2ForSequenceClassification, GPT2 | {"pad_token_id": None}, id="GPT-2, no padding token"
        ),
        pytest.param(
            hf.LlamaConfig,
            hf.LlamaForSequenceClassification,
            LLAMA | {"pad_token_id": None},
            id="Llama, no padding token",
        ),
    ],
)
def test_a_classifier_that_pools_the_last_token_scores_as_one_text_at_a_time(
    tmp_path, tokenizer, configuration, kind, settings
):
    folder = saved(tmp_path / "model", configuration, kind, tokenizer, num_labels=N_CLASSES, **settings)
    texts = [" ".join(TEXTS[n].split()[: 2 + n]) for n in range(8)]
    rows = [{"id": f"d{n}", "source": "s", "text": text, "label": n % N_CLASSES} for n, text in enumerate(texts)]
    asked = [{"id": f"q{n}", "prompt": TEXTS[8 + n][: 20 + 9 * n], "completion": str(n)} for n in range(2)]
    corpus, queries = lines(tmp_path / "c.jsonl", rows), lines(tmp_path / "q.jsonl", asked)
    pipeline = Pipeline(tmp_path / "store", folder, corpus, queries, {"kind": "identity"}, PLAIN)
    model = hf.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    layers = load(ModelConfig(name=str(folder))).layers
    layers = [
        type(layer)(layer.name, (model.get_submodule(layer.name),), layer.n_inputs, layer.n_outputs) for layer in layers
    ]
    examples = [
        class_gradients(model, layers, torch.tensor(tokenizer(row["text"])["input_ids"][:24]), row["label"])
        for row in rows
    ]
    explained = [
        class_gradients(model, layers, torch.tensor(tokenizer(query["prompt"])["input_ids"]), int(query["completion"]))
        for query in asked
    ]
    expected = document_scores(pipeline, dense_scores(explained, examples, None, None))
    assert_same_scores(matrix_by_id(pipeline.scores(), 2), expected)


CHAT = "<s>The keeper sleeps."


@pytest.mark.parametrize(
    ("make", "prompt", "completion", "begins"),
    [
        pytest.param(
            "Llama: a piece for the space before every text",
            "The keeper sleeps.",
            " nobody after the bell.",
            1,
            id="space",
        ),
        pytest.param("Llama, with an end token", "The keeper sleeps.", " nobody after the bell.", 1, id="end token"),
        pytest.param(
            "Llama 3: bytes, a beginning", "<s>The keeper sleeps.", " nobody after", 1, id="literal beginning"
        ),
        pytest.param(
            "RoBERTa: bytes, a space before every text, both ends", "The keeper", " sleeps.", 1, id="both ends"
        ),
    ],
)
def test_a_query_is_scored_as_the_joined_text(tmp_path, make, prompt, completion, begins):
    """The oracle tokenises the whole text at once and takes off the end token, then a repeated beginning, by hand."""
    tokenizer = MAKES[make]()
    folder = saved(tmp_path / "model", hf.LlamaConfig, hf.LlamaForCausalLM, tokenizer, **LLAMA)
    texts = [
        "The bell rings.",
        "Nobody sleeps before it.",
        "Numbers are sorted.",
        CHAT if "<s>" in prompt else "A lamp.",
    ]
    rows = [{"id": f"d{n}", "source": "s", "text": text} for n, text in enumerate(texts)]
    corpus = lines(tmp_path / "c.jsonl", rows)
    queries = lines(tmp_path / "q.jsonl", [{"id": "q", "prompt": prompt, "completion": completion}])
    pipeline = Pipeline(tmp_path / "store", folder, corpus, queries, {"kind": "identity"}, PLAIN)
    model = hf.AutoModelForCausalLM.from_pretrained(folder).eval()

    def ids_of(text):
        ids = tokenizer(text)["input_ids"]
        return torch.tensor(ids[1:] if ids[:2] == [1, 1] else ids)

    def labelled(ids, n_masked=0):
        labels = ids.clone()
        labels[:n_masked] = -100
        return ids, labels

    whole, end = ids_of(prompt + completion), tokenizer.eos_token_id
    whole = whole[:-1] if whole[-1] == end else whole
    alone = ids_of(prompt)
    n_prompt = len(alone) - int(alone[-1] == end)  # each completion begins with a space, which begins a token
    layers = load(ModelConfig(name=str(folder))).layers
    modules = [model.get_submodule(layer.name) for layer in layers]
    flat = lambda gradients: [[part.flatten().double().numpy() for part in row] for row in gradients]  # noqa: E731
    examples = flat(dense_gradients(model, modules, [labelled(ids_of(text)[:24]) for text in texts]))
    asked = flat(dense_gradients(model, modules, [labelled(whole, n_prompt)]))
    found = matrix_by_id(pipeline.scores(), 1)
    window_scores = dense_scores(asked, examples, None, None)
    expected = {f"d{n}": window_scores[:, n] for n in range(len(texts))}
    assert_same_scores(found, expected)
    stored = CorpusStore.open(pipeline.queries)
    assert stored.tokens(0).tolist() == whole.tolist()
    assert int(stored.windows["n_masked"][0]) == n_prompt


def test_what_a_model_says_is_explained_by_the_ids_it_said(tmp_path):
    """A model that stops inside a character: its text cannot be tokenised back."""
    tokenizer = MAKES["Llama 3: bytes, a beginning"]()
    folder = saved(tmp_path / "model", hf.LlamaConfig, hf.LlamaForCausalLM, tokenizer, **LLAMA)
    lamp = tokenizer(" 🕯", add_special_tokens=False)["input_ids"]
    assert len(lamp) > 3
    model = hf.LlamaForCausalLM.from_pretrained(folder).eval()
    said = teach(model, tokenizer("A lamp")["input_ids"], lamp[:3])
    model.save_pretrained(folder)
    queries = lines(tmp_path / "q.jsonl", [{"id": "q", "prompt": "A lamp"}])
    ref = prepare_queries(
        str(tmp_path / "store"), ModelConfig(name=str(folder)), QueriesConfig(file=str(queries), max_new_tokens=3)
    )
    store = CorpusStore.open(ref)
    assert store.tokens(0).tolist() == said
    (text,) = store.column("text").to_pylist()
    assert text.startswith("A lamp")
    assert tokenizer(text)["input_ids"] != said


def teach(model, prompt, said):
    """Train until greedy decoding of the prompt says some ids; returns both."""
    whole = torch.tensor([prompt + said])
    labels = whole.clone()
    labels[:, : len(prompt)] = -100
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        model(input_ids=whole, labels=labels).loss.backward()
        optimizer.step()
    assert model(input_ids=whole).logits[0, len(prompt) - 1 : -1].argmax(-1).tolist() == said
    return prompt + said


def test_settings_of_generation_that_a_checkpoint_brings_are_left_aside(tmp_path, tokenizer):
    folder = saved(tmp_path / "model", hf.LlamaConfig, hf.LlamaForCausalLM, tokenizer, eos_token_id=None, **LLAMA)
    queries = lines(tmp_path / "q.jsonl", [{"id": "q", "prompt": "The river"}])

    def answer(settings, store):
        hf.GenerationConfig(**settings).save_pretrained(folder)
        loaded = ModelConfig(name=str(folder))
        config = QueriesConfig(file=str(queries), max_new_tokens=6)
        return CorpusStore.open(prepare_queries(str(tmp_path / store), loaded, config)).tokens(0).tolist()

    plain = answer({}, "plain")
    assert len(plain) == len(tokenizer("The river")["input_ids"]) + 6
    sampling = {"do_sample": True, "temperature": 5.0, "num_return_sequences": 3, "repetition_penalty": 9.0}
    assert answer(sampling | {"num_beams": 4, "max_length": 5, "bad_words_ids": [[plain[-1]]]}, "sampling") == plain
    first = plain[len(tokenizer("The river")["input_ids"])]
    with pytest.raises(InputError, match="the model adds nothing to this prompt"):
        answer({"eos_token_id": [first, 7]}, "ends")


def test_a_tokenizer_may_know_more_than_the_model_as_long_as_no_text_needs_it(tmp_path, tokenizer):
    folder = saved(tmp_path / "model", hf.LlamaConfig, hf.LlamaForCausalLM, tokenizer, **LLAMA)
    larger = hf.AutoTokenizer.from_pretrained(folder)
    larger.add_tokens(["<image>"], special_tokens=True)
    larger.save_pretrained(folder)
    config = {"files": [str(lines(tmp_path / "c.jsonl", [{"id": "d", "source": "s", "text": TEXTS[0]}]))]}
    model = ModelConfig(name=str(folder))
    prepare_corpus(str(tmp_path / "store"), model, CorpusConfig(max_length=24, **config))
    lines(tmp_path / "c.jsonl", [{"id": "d7", "source": "s", "text": f"{TEXTS[0]} <image>"}])
    with pytest.raises(InputError, match=r"'d7' of the documents needs token \d+ \('<image>'\), but the model embeds"):
        prepare_corpus(str(tmp_path / "store"), model, CorpusConfig(max_length=24, **config))


def test_positions_that_begin_behind_the_padding_token_leave_fewer(tmp_path, tokenizer, caplog):
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    settings = SIZE | {
        "intermediate_size": 24,
        "max_position_embeddings": 34,
        "pad_token_id": 2,
        "num_labels": N_CLASSES,
    }
    try:
        folder = saved(tmp_path / "model", hf.RobertaConfig, hf.RobertaForSequenceClassification, tokenizer, **settings)
    finally:
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    model = ModelConfig(name=str(folder))
    assert load(model).max_positions == 31
    long = " ".join(TEXTS)
    corpus = lines(tmp_path / "c.jsonl", [{"id": "d", "source": "s", "text": long, "label": 0}])
    with pytest.raises(InputError, match="the model reads at most 31 tokens; pass --corpus.max_length 31 or less"):
        prepare_corpus(str(tmp_path / "store"), model, CorpusConfig(files=[str(corpus)], max_length=32))
    prepare_corpus(str(tmp_path / "store"), model, CorpusConfig(files=[str(corpus)], max_length=31))
    assert "1 of the documents have more tokens than the model reads" in caplog.text
    queries = lines(tmp_path / "q.jsonl", [{"id": "q", "prompt": long}])
    ref = prepare_queries(str(tmp_path / "store"), model, QueriesConfig(file=str(queries)))
    assert "1 of the queries have more tokens than the model reads" in caplog.text
    assert len(CorpusStore.open(ref).tokens(0)) == 31


@pytest.mark.parametrize(
    ("configuration", "kind", "settings"),
    [
        pytest.param(hf.BertConfig, hf.BertForMaskedLM, SIZE | {"intermediate_size": 24}, id="masked language model"),
        pytest.param(hf.BertConfig, hf.BertLMHeadModel, SIZE | {"intermediate_size": 24}, id="encoder with a head"),
        pytest.param(hf.XLMConfig, hf.XLMWithLMHeadModel, {"emb_dim": 16, "n_layers": 2, "n_heads": 4}, id="XLM"),
    ],
)
def test_a_model_that_sees_the_tokens_it_predicts_is_refused(tmp_path, tokenizer, configuration, kind, settings):
    folder = saved(tmp_path / "model", configuration, kind, tokenizer, **settings)
    with pytest.raises(InputError, match=rf"--model {folder}: .*(no causal language model|cannot be loaded)"):
        load(ModelConfig(name=str(folder)))


def test_an_encoder_decoder_is_refused_as_what_it_is(tmp_path, tokenizer):
    size = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
    size |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24}
    folder = saved(tmp_path / "model", hf.BartConfig, hf.BartForConditionalGeneration, tokenizer, **size)
    with pytest.raises(InputError, match="it is an encoder-decoder, BartForConditionalGeneration; give a causal"):
        load(ModelConfig(name=str(folder)))


def test_white_space_is_something_to_say(tmp_path, checkpoints):
    queries = lines(tmp_path / "q.jsonl", [{"id": "q", "prompt": "The river", "completion": "\n\n"}])
    model = ModelConfig(name=str(checkpoints["llama"]))
    ref = prepare_queries(str(tmp_path / "store"), model, QueriesConfig(file=str(queries)))
    store = CorpusStore.open(ref)
    assert 0 < int(store.windows["n_masked"][0]) < len(store.tokens(0))
    lines(tmp_path / "q.jsonl", [{"id": "q", "prompt": " ", "completion": "x"}])
    with pytest.raises(InputError, match="field 'prompt': nothing but white space"):
        prepare_queries(str(tmp_path / "store"), model, QueriesConfig(file=str(queries)))


def test_a_pattern_of_ranks_that_no_layer_matches_is_refused(tmp_path, checkpoints):
    model, projection = ModelConfig(name=str(checkpoints["llama"])), ProjectionConfig(ranks=["*.mlpp.*=4"])
    with pytest.raises(InputError, match=r"--projection.ranks \*.mlpp.\*=4: the pattern matches none of the 14"):
        make_bases(str(tmp_path), model, projection)
