"""Proxies that the environment names: servers on this machine are never reached through one.

Every library here reads the same variables when it makes a client (httpx of Prefect, websockets, requests of MLflow,
urllib, obstore), and every process that is started inherits them.
"""

import os
from collections.abc import Mapping, MutableMapping
from ipaddress import ip_address
from urllib.parse import urlsplit

__all__ = ["LOOPBACK", "proxies", "spare_loopback"]

# requests and obstore know the network, the others the addresses.
LOOPBACK = ("localhost", "127.0.0.1", "::1", "127.0.0.0/8")
# Of servers, which may be on another address of the network.
ADDRESSES = ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")
NO_PROXY = "no_proxy"


def proxies(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables that name a proxy, in their order."""
    return {
        name: value
        for name, value in environment.items()
        if name.lower().endswith("_proxy") and name.lower() != NO_PROXY and value
    }


def spare_loopback(environment: MutableMapping[str, str] = os.environ) -> None:
    """If there is a proxy, add this machine to the hosts reached without it; hosts already listed stay.

    Without one nothing is set: on some systems any such variable hides the proxies of the system's own settings.
    """
    if not proxies(environment):
        return
    here = [*LOOPBACK, *(host for host in map(_host, map(environment.get, ADDRESSES)) if _is_loopback(host))]
    lower, upper = environment.get(NO_PROXY), environment.get(NO_PROXY.upper())
    for name, value in ((NO_PROXY, lower or upper), (NO_PROXY.upper(), upper or lower)):
        hosts = [host.strip() for host in (value or "").split(",") if host.strip()]
        environment[name] = ",".join(dict.fromkeys([*hosts, *here]))


def _host(address: str | None) -> str:
    try:
        return urlsplit(address or "").hostname or ""
    except ValueError:  # an address that is none is refused where it is used
        return ""


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
