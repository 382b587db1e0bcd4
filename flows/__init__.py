"""What each document, and each source of documents, is worth to a language model.

In a notebook: `index` and `value` (dataworth.notebook); around a training loop: `Indexing` (dataworth.training).
Importing this silences telemetry, gives servers time to start and keeps loopback away from proxies.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from dataworth.serving.proxies import spare_loopback

if TYPE_CHECKING:
    from dataworth.notebook import Rows, Scores, Valuation, index, value
    from dataworth.training import Indexing

__all__ = ["Indexing", "Rows", "Scores", "Valuation", "index", "value"]

# Imported when they are first asked for.
MODULES = {"Indexing": "dataworth.training"} | dict.fromkeys(
    ("Rows", "Scores", "Valuation", "index", "value"), "dataworth.notebook"
)

# Nothing leaves the machine; a Prefect server that a flow starts takes 11-24 s on two cores, its usual limit is 20.
ENVIRONMENT = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
    "PREFECT_LOGGING_EXTRA_LOGGERS": "",
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    # 2 + 4 + 8 s a request; a run whose server is gone makes a few before it ends.
    "PREFECT_CLIENT_MAX_RETRIES": "3",
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}

for _name, _setting in ENVIRONMENT.items():
    os.environ.setdefault(_name, _setting)
spare_loopback()


def __getattr__(name: str) -> Any:
    if name not in MODULES:
        raise AttributeError(f"module 'dataworth' has no attribute {name!r}")
    return getattr(import_module(MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
