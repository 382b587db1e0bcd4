"""The doctor's look at a checkpoint and a corpus of one's own."""

import json
import sys

import pytest
import transformers as hf

from dataworth.command import checkup as module
from dataworth.command.checkup import checkup
from dataworth.command.cli import main
from dataworth.tasks.corpus.config import CorpusConfig
from dataworth.tasks.model.config import ModelConfig
from tests.reference.checkpoints import SIZE, TEXTS


def found(checkpoint, corpus=None, **config):
    corpus = None if corpus is None else CorpusConfig(files=[str(corpus)], **config)
    return {check.what: check for check in checkup(ModelConfig(name=str(checkpoint)), corpus)}


def test_a_language_model_and_its_corpus(checkpoints, corpus_file):
    checks = found(checkpoints["llama"], corpus_file, max_length=64)
    assert all(check.ok for check in checks.values())
    assert checks["model"].found.startswith("LlamaForCausalLM, 0.0 million parameters, torch.float32")
    assert checks["positions"].found == "64 tokens"
    assert "of 13,520 parameters are tracked" in checks["coverage"].found
    assert checks["corpus"].found.startswith("all documents: 12 of 3 sources")
    assert checks["tokenizer"].found == "adds <s> before a text, nothing after it"
    assert "differ from autograd's by at most" in checks["gradients"].found
    assert float(checks["gradients"].found.split("at most ")[1].split()[0]) < 1e-4


@pytest.mark.parametrize("name", ["bert classifier", "gpt2"])
def test_other_models(checkpoints, name):
    checks = found(checkpoints[name])
    assert all(check.ok for check in checks.values())
    assert ("classes" in checks) == name.endswith("classifier")


def test_what_would_fail_is_said(checkpoints, corpus_file, tmp_path, tokenizer, monkeypatch):
    checks = found(checkpoints["llama"], corpus_file, max_length=65)
    assert checks["windows"].remedy == "pass --corpus.max_length 64 or less"
    assert "no such file" in found(checkpoints["llama"], tmp_path / "none.jsonl")["corpus"].remedy
    larger = hf.AutoTokenizer.from_pretrained(checkpoints["llama"])
    hf.AutoModelForCausalLM.from_pretrained(checkpoints["llama"]).save_pretrained(tmp_path / "model")
    larger.add_tokens(["<image>"], special_tokens=True)
    larger.save_pretrained(tmp_path / "model")
    (tmp_path / "c.jsonl").write_text(json.dumps({"id": "d", "source": "s", "text": f"<s>{TEXTS[0]} <image>"}))
    checks = found(tmp_path / "model", tmp_path / "c.jsonl", max_length=64)
    assert checks["ids"].remedy.startswith("a document needs token ")
    assert checks["rendered"].found.startswith("1 begin or end as the tokenizer would")
    monkeypatch.setattr(module, "error_against_autograd", lambda *_: 0.5)
    assert found(checkpoints["llama"])["gradients"].remedy == "this model is computed wrongly"


def test_a_model_that_cannot_be_used_ends_the_look(tmp_path, tokenizer):
    settings = SIZE | {"intermediate_size": 24, "vocab_size": len(tokenizer)}
    hf.BertLMHeadModel(hf.BertConfig(**settings)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    (check,) = checkup(ModelConfig(name=str(tmp_path)), None)
    assert not check.ok
    assert "no causal language model" in check.remedy


def test_the_command(checkpoints, corpus_file, monkeypatch, capsys):
    def run(*words):
        monkeypatch.setattr(sys, "argv", ["dataworth", "doctor", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, *capsys.readouterr()

    code, said, _ = run("--model", checkpoints["llama"], "--corpus", corpus_file, "--corpus.max_length", 64)
    assert code == 0
    assert "differ from autograd's" in said
    code, said, _ = run("--model", checkpoints["llama"], "--corpus", corpus_file)
    assert code == 0
    assert "of 64 tokens" in said
    code, said, complaint = run("--model", checkpoints["llama"], "--corpus", corpus_file, "--corpus.max_length", 65)
    assert code == 1
    assert "windows: pass --corpus.max_length 64 or less" in complaint
    assert "gradients" in said
    code, _, complaint = run("--corpus", corpus_file)
    assert code == 2
    assert "pass --model, too" in complaint
