"""What a run needs, checked one by one."""

import os
import shutil
import tempfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from dataworth.command.given import prefect_home
from dataworth.serving.proxies import proxies
from dataworth.storage.errors import InputError
from dataworth.storage.locations import default_store, home
from dataworth.tasks.visible import without_password

__all__ = ["Check", "checks"]

PACKAGES = ("torch", "transformers", "prefect", "mlflow", "zarr", "dask", "distributed", "fastapi", "sqlalchemy")
LEAST_FREE_BYTES = 2 * 2**30


@dataclass(frozen=True)
class Check:
    """One line of the doctor.

    Args:
        what: was looked at.
        found: there.
        ok: a run can do with it.
        remedy: what to do if not.
    """

    what: str
    found: str
    ok: bool = True
    remedy: str = ""


def checks() -> list[Check]:
    """Packages, device, folders, proxy and servers."""
    return [*_packages(), _device(), *_folders(), _proxy(), *_servers()]


def _packages() -> list[Check]:
    lines = []
    for name in PACKAGES:
        try:
            number = version(name)
        except PackageNotFoundError:
            lines.append(Check(name, "not installed", False, f"pip install {name}"))
            continue
        release = tuple(int(part) for part in number.split("+")[0].split(".")[:2] if part.isdigit())
        broken = (name == "fastapi" and release >= (0, 151)) or (name == "sqlalchemy" and release >= (2, 1))
        remedy = "install fastapi<0.151" if name == "fastapi" else "install sqlalchemy<2.1"
        lines.append(Check(name, number, not broken, remedy if broken else ""))
    return lines


def _device() -> Check:
    import torch

    if torch.cuda.is_available():
        return Check("device", f"{torch.cuda.get_device_name()} ({torch.cuda.device_count()} in all)")
    return Check("device", f"CPU, {os.cpu_count()} cores")


def _folders() -> list[Check]:
    try:
        return [
            _folder("store", default_store(), "DATAWORTH_HOME"),
            _folder("Prefect's home", prefect_home(), "PREFECT_HOME"),
        ]
    except InputError as error:
        return [Check("store", "nowhere", False, str(error))]


def _folder(what: str, folder: Path, variable: str) -> Check:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            free = shutil.disk_usage(folder).free
    except OSError as error:
        return Check(what, str(folder), False, f"cannot be written ({error.strerror}); set {variable}")
    enough = free >= LEAST_FREE_BYTES
    return Check(what, f"{folder}, {free / 2**30:.1f} GiB free", enough, "" if enough else "free some space")


def _proxy() -> Check:
    """Of no server that is asked for by loopback."""
    named = ", ".join(f"{name}={without_password(value)}" for name, value in proxies().items())
    return Check("proxy", f"{named}, not for {os.environ.get('no_proxy', '')}" if named else "none")


def _turned_away(address: str) -> bool:
    """The Prefect API answers, but not to what Prefect's clients here send as a password."""
    import httpx
    from prefect.settings import get_current_settings

    settings = get_current_settings().api
    if settings.key is not None:  # of Prefect Cloud
        return False
    user, given, password = settings.auth_string.get_secret_value().partition(":") if settings.auth_string else [""] * 3
    auth = (user, password) if given else None
    return httpx.get(f"{address.rstrip('/')}/admin/version", timeout=5, auth=auth).status_code == 401


def _servers() -> list[Check]:
    import httpx  # the client of Prefect: where it is asked through a proxy, so is it here

    lines = []
    for what, variable, path in (
        ("Prefect", "PREFECT_API_URL", "/health"),
        ("MLflow", "MLFLOW_TRACKING_URI", "/health"),
    ):
        address = os.environ.get(variable)
        if not address or not address.startswith("http"):
            lines.append(Check(what, address or f"embedded ({variable} is not set)"))
            continue
        try:
            httpx.get(address.rstrip("/") + path, timeout=5, follow_redirects=True).raise_for_status()
            if what == "Prefect" and _turned_away(address):
                remedy = "set PREFECT_API_AUTH_STRING, which `dataworth ui` prints"
                lines.append(Check(what, f"{address} does not take the password", False, remedy))
                continue
            lines.append(Check(what, f"{address} answers"))
        except (httpx.HTTPError, httpx.InvalidURL, ImportError, OSError) as error:
            lines.append(Check(what, f"{address} does not answer", False, f"start it or unset {variable} ({error})"))
    address = os.environ.get("DATAWORTH_DASK")
    if not address:
        return [*lines, Check("Dask", f"local cluster (DATAWORTH_DASK is not set), MLflow and stores under {home()}")]
    from distributed import Client

    try:
        with Client(address, timeout="5s", set_as_default=False) as client:
            workers = len(client.scheduler_info()["workers"])
    except (OSError, ValueError) as error:
        return [
            *lines,
            Check("Dask", f"{address} does not answer", False, f"start it or unset DATAWORTH_DASK ({error})"),
        ]
    return [*lines, Check("Dask", f"{address}, {workers} workers", workers > 0, "start a worker")]
