"""Prefect flows and the command line.

Importing it silences telemetry, gives the embedded server time to start and keeps loopback away from proxies.
"""

import os

from dataworth.serving.proxies import spare_loopback

# Nothing leaves the machine; the embedded Prefect server takes 11-24 s to start on two cores, its default limit is 20.
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

for name, value in ENVIRONMENT.items():
    os.environ.setdefault(name, value)
spare_loopback()
