"""A machine of its own with a Docker Engine and linkspand, its plugin, on it; see bench.world."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from typing import Any

from bench import leftovers
from bench.leftovers import Footprint
from bench.paths import Path as Way
from bench.world import BenchError, World
from tests.docker.engine import CLIENTS, PLUGIN_SOCKET, DockerError, Engine


class DockerWorld(World):
    """The machine and its `engine`; `close` removes both."""

    def __init__(self) -> None:
        super().__init__()
        self.plugin_socket = PLUGIN_SOCKET
        try:
            self.engine = Engine(self, CLIENTS[0])
        except BaseException:
            super().close()
            raise

    def start_engine(self, *flags: str) -> None:
        """Starts dockerd and imports the image of the containers. Raises BenchError."""
        try:
            self.engine.start(*flags)
            self.engine.import_image()
        except DockerError as error:
            raise BenchError(str(error)) from error

    def docker(self, *args: str) -> str:
        """What a docker command prints; raises BenchError with everything it said if it fails."""
        try:
            return self.engine.docker(*args).stdout
        except DockerError as error:
            raise BenchError(str(error)) from error

    def log(self) -> str:
        """What dockerd and linkspand have written."""
        return f"{self.engine.log()}\n{super().log()}"

    def container_netns(self, name: str) -> str:
        """The path of a running container's namespace, for `inside`."""
        return f"/proc/{self._inspect(name)['State']['Pid']}/ns/net"

    def way(self, title: str, network: str, client: str, server: str) -> Way:
        """The way over a network between two containers that are on it."""
        address = self._inspect(server)["NetworkSettings"]["Networks"][network]["IPAddress"]
        netns = self.container_netns(server)
        links = json.loads(self.run("nsenter", f"--net={netns}", "ip", "-json", "address", "show", "to", address))
        return Way(title, self, self.container_netns(client), netns, address, next(filter(None, links))["ifname"])

    def _inspect(self, name: str) -> Any:
        return json.loads(self.docker("inspect", "--type", "container", name))[0]

    def footprint(self) -> Footprint:
        """What the machine is made of, its containers included."""
        own = leftovers.footprint(self)
        containers = {os.stat(f"/proc/{pid}/ns/net").st_ino for pid in self.engine.processes()}
        return replace(own, namespaces=own.namespaces | containers)

    def close(self) -> None:
        """Ends every process, which ends the machine, and removes its directory and its cgroups."""
        try:
            self.engine.stop()
        finally:
            super().close()
