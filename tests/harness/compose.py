"""The compose file and the image's environment as they are written, and the same programs on loopback."""

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from dataworth.serving.servers import free_port

__all__ = ["CODE", "INFRA", "OnLoopback", "image_environment", "interpolated", "secret_names", "services"]

CODE = Path(__file__).parents[2]
INFRA = CODE / "infra"
VARIABLE = re.compile(r"\$\{(\w+)(?:(:-|:\?)([^}]*))?\}")


def interpolated(text: str, environment: Mapping[str, str]) -> str:
    """Text with ${NAME:-default} and ${NAME:?complaint} filled in as Compose does.

    Raises:
        KeyError: a required variable is empty or not there.
    """

    def value(match: re.Match[str]) -> str:
        name, kind, rest = match.groups()
        if environment.get(name):
            return environment[name]
        if kind == ":-":
            return rest
        raise KeyError(f"{name}: {rest}")

    return VARIABLE.sub(value, text)


def services(environment: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Services by name, with the environment filled in."""
    return yaml.safe_load(interpolated((INFRA / "compose.yaml").read_text(), environment))["services"]


def secret_names() -> list[str]:
    """Those that the example of the secrets asks for."""
    return re.findall(r"^([A-Z_]+)=$", (INFRA / "secrets.example").read_text(), re.MULTILINE)


def image_environment() -> dict[str, str]:
    """What the last stage of the Containerfile sets."""
    last = (INFRA / "Containerfile").read_text().rpartition("\nFROM ")[2].replace("\\\n", " ")
    (line,) = re.findall(r"^ENV (.*)$", last, re.MULTILINE)
    return dict(pair.split("=", 1) for pair in line.split())


class OnLoopback:
    """The services' commands, with addresses of loopback, free ports, and folders below one for those of containers.

    Args:
        environment: fills in the compose file.
        root: an empty folder.
        programs: folder of PostgreSQL's programs.
    """

    def __init__(self, environment: Mapping[str, str], root: Path, programs: Path):
        self.services, self.root, self.programs = services(environment), root, programs
        self.ports = {
            name: {port: str(free_port()) for port in service.get("expose", [])}
            for name, service in self.services.items()
        }
        self.address = {
            f"{name}:{port}": f"127.0.0.1:{to}" for name, ports in self.ports.items() for port, to in ports.items()
        }
        (self.folder("mlflow", "/opt/dataworth/infra") / "mlflow-auth.ini").write_text(
            self.text("mlflow", (INFRA / "mlflow-auth.ini").read_text())
        )

    def folder(self, name: str, path: str) -> Path:
        """For a folder of a service's container: shared where it is on a volume, else the service's own."""
        mounted = {target: volume for volume, target, *_ in self._volumes(name)}
        folder = self.root / "volumes" / mounted[path] if path in mounted else self.root / name / path.strip("/")
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def mounted_file(self, name: str, suffix: str) -> Path:
        """The file of ours that a service's container gets."""
        (file,) = [source for source, *_ in self._volumes(name) if source.endswith(suffix)]
        return INFRA / file

    def _volumes(self, name: str) -> list[list[str]]:
        return [volume.split(":") for volume in self.services[name].get("volumes", [])]

    def text(self, name: str, text: str) -> str:
        """A word of a service's command, or a value of its environment."""
        paths = ("/opt/dataworth/infra", "/var/lib/postgresql/data", "/var/lib/mlflow", "/inputs", "/data", "/tmp")
        new = {**self.address, **self.ports[name], "0.0.0.0": "127.0.0.1", "/opt/dataworth": str(CODE)}
        old = "|".join(re.escape(word) for word in sorted([*new, *paths], key=len, reverse=True))
        return re.sub(
            rf"(?<![\w.-])(?:{old})(?![\w.])",
            lambda match: new.get(match.group()) or str(self.folder(name, match.group())),
            text,
        )

    def words(self, name: str, words: Sequence[str]) -> list[str]:
        """A command, its program by its path."""
        program, *rest = words
        of_environment = Path(sys.executable).with_name(program)
        path = of_environment if of_environment.exists() else self.programs / program
        return [str(path), *(self.text(name, word) for word in rest)]

    def command(self, name: str) -> list[str]:
        """What a service runs."""
        return self.words(name, self.services[name]["command"])

    def health(self, name: str) -> list[str]:
        """What asks whether a service is well."""
        kind, *words = self.services[name]["healthcheck"]["test"]
        if kind != "CMD":
            raise ValueError(f"{name}: the health check is {kind}, expected CMD, which needs no shell")
        return self.words(name, words)

    def environment(self, name: str) -> dict[str, str]:
        """The image's and the service's own; the image's PATH means nothing here."""
        image = {} if name == "postgres" else image_environment()
        merged = {**image, **self.services[name].get("environment", {})}
        return {key: self.text(name, value) for key, value in merged.items() if key != "PATH"}
