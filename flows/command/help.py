"""What to type: the examples under `dataworth --help` and each command's, and the first screen of long ones."""

__all__ = ["BY_COMMAND", "FIRST", "WHOLE"]

WHOLE = """\
What is each document, and each source of documents, worth to a language model?

\b
A first look, with nothing prepared (3 minutes on two cores):
  dataworth demo
\b
Your model, your documents, your questions:
  dataworth value --model ./checkpoint --corpus docs.jsonl --queries questions.jsonl --results out
  dataworth top --results out --query ID          the passages that taught it most
  dataworth explain --results out --document ID   why a document has its value
  dataworth what-if --results out --without NAME  the shares had a source been absent
\b
The same every night, from a web page:
  dataworth ui
\b
What would fail, before it does:
  dataworth doctor
"""

BY_COMMAND = {
    "value": """\
\b
Examples:
  dataworth value --model ./checkpoint --corpus docs.jsonl --queries q.jsonl --results out
  dataworth value --config run.yaml --results out-tuesday
  dataworth value --model run/step-800 run/step-1000 --corpus docs.jsonl --queries q.jsonl --results out
  dataworth value … --sources.by 'publisher>section' --sources.payout.rule floor
  dataworth value … --model.base ./before-training --sources.game newton
  dataworth value … --candidates new/*.jsonl --candidates.epochs 1     what would they add?
  dataworth value … --cluster.address tcp://scheduler:8786 --store s3://bucket/stores
\b
docs.jsonl, a line a document:    {"id": "a1", "source": "news", "text": "…"}
q.jsonl, a line a question:       {"id": "q1", "prompt": "…", "completion": "…"}
run.yaml, the same names:         model: {name: ./checkpoint}
                                  projection: {kind: pca, rank: 32}
""",
    "index": """\
\b
Examples:
  dataworth index --model ./checkpoint --corpus docs.jsonl more/ --store stores
  torchrun --nproc-per-node 8 $(which dataworth) index --model ./checkpoint --corpus docs.jsonl
""",
    "fit": """\
\b
Example:
  dataworth fit --model ./checkpoint --corpus docs.jsonl --projection pca --curvature ekfac
""",
    "search": """\
\b
Example:
  dataworth search --model ./checkpoint --corpus docs.jsonl --query 'The capital of France is'
""",
    "audit": """\
\b
Examples:
  dataworth audit --audit.problem digits --results audit
  dataworth audit --audit.problem demo --results audit
  dataworth audit --model ./checkpoint --model.base ./before --corpus docs.jsonl --queries q.jsonl --results audit
  dataworth audit … --audit.tune --audit.subsets 100
  dataworth value … --config audit/tuned.yaml
\b
A problem of your own, any model and training: MODULE:FUNCTION that returns a Problem (see
dataworth.tasks.counterfactual.problem)
""",
    "demo": """\
\b
Examples:
  dataworth demo --results demo --seed 1
  dataworth demo --epochs 2                     trained less, sooner done
""",
    "publish": """\
\b
Examples:
  dataworth publish --results out
  dataworth publish --results out --tracking.uri http://mlflow.example:5000 --tracking.experiment news
""",
    "top": """\
\b
Examples:
  dataworth top --results out
  dataworth top --results out --query q1 --count 20
""",
    "explain": """\
\b
Example:
  dataworth explain --results out --document a1
""",
    "what-if": """\
\b
Examples:
  dataworth what-if --results out --without news --without books
  dataworth what-if --results out --split news --parts 3
""",
    "compare": """\
\b
Example:
  dataworth compare out-monday out-tuesday --html differences.html
""",
    "withdraw": """\
\b
Examples:
  dataworth withdraw --source news
  dataworth withdraw --document a1 --document a2, then dataworth compact
""",
    "ui": """\
\b
Examples:
  dataworth ui
  dataworth ui --prefect-port 0 --mlflow-port 0    takes ports that are free
""",
    "completion": """\
\b
Examples:
  dataworth completion bash >> ~/.bashrc
  dataworth completion zsh >> ~/.zshrc
  dataworth completion fish > ~/.config/fish/completions/dataworth.fish
""",
}

# What `--help` says of commands with many options; `--help all` says the rest.
FIRST = {
    "value": """\
--model CHECKPOINT       whose training data is valued: a folder, or a name on the Hugging Face hub
--model.base CHECKPOINT  what its training began from, where that is known: values are much better with it
--corpus FILES           the documents: JSONL, Parquet, CSV, folders, patterns, hf:NAME
--queries FILE           the questions: JSONL
--results FOLDER         where tables, figures and the report go
--sources.by FIELD       who is valued: a field of the documents (source)
--game NAME              how sources are valued, such as additive, ledger, retrain (auto)
--sources.trainings N    measure values by so many trainings, which certifies them (0)
--config FILE            all of this, and more, in a file

Examples:
  dataworth value --model ./checkpoint --corpus docs.jsonl --queries q.jsonl --results out
  dataworth value --model run/checkpoint-* --model.base ./before --corpus news=n.jsonl books=b/ --queries q.jsonl
  dataworth value --config run.yaml --results out-tuesday
""",
    "index": """\
--model CHECKPOINT       whose gradients are stored: a folder, or a name on the Hugging Face hub
--corpus FILES           the documents: JSONL, Parquet, CSV, folders, patterns, hf:NAME
--store FOLDER           where they are stored, or s3://bucket/prefix
--projection NAME        how gradients are made small: random, pca, mask, factgrass, identity (random)
--projection.rank N      dimensions kept on each side of a layer (16)
--config FILE            all of this, and more, in a file

Examples:
  dataworth index --model ./checkpoint --corpus docs.jsonl more/ --store stores
  dataworth index --model ./checkpoint --corpus docs.jsonl --projection.rank 64
  torchrun --nproc-per-node 8 $(which dataworth) index --model ./checkpoint --corpus docs.jsonl
""",
    "fit": """\
--model CHECKPOINT       whose curvature is fitted: a folder, or a name on the Hugging Face hub
--corpus FILES           the documents: JSONL, Parquet, CSV, folders, patterns, hf:NAME
--store FOLDER           where it is stored, or s3://bucket/prefix
--projection NAME        of the gradients: random, pca, mask, factgrass, identity (random)
--curvature NAME         fisher, kfac, ekfac (fisher)
--config FILE            all of this, and more, in a file

Example:
  dataworth fit --model ./checkpoint --corpus docs.jsonl --projection pca --curvature ekfac
""",
    "search": """\
--model CHECKPOINT       that is asked: a folder, or a name on the Hugging Face hub
--corpus FILES           the documents, indexed before
--query TEXT             the prompt
--completion TEXT        what is explained; without it, what the model says
--count N                documents to show (10)

Example:
  dataworth search --model ./checkpoint --corpus docs.jsonl --query 'The capital of France is'
""",
    "audit": """\
--audit.problem NAME     digits, demo, or MODULE:FUNCTION of a problem of your own; without it, the model's
--model CHECKPOINT       that was trained, and --model.base what its training began from
--corpus FILES           what it was trained on
--queries FILE           the questions: JSONL
--results FOLDER         where tables and the report go
--audit.methods NAMES    which methods are tried
--audit.subsets N        trainings without some of the documents, against which they are held
--config FILE            all of this, and more, in a file

Examples:
  dataworth audit --audit.problem digits --results audit
  dataworth audit --model ./checkpoint --model.base ./before --corpus docs.jsonl --queries q.jsonl --results audit
  dataworth value … --config audit/tuned.yaml
""",
}
