"""linkspand: the process that owns a host's networks.

It starts in this order: configuration, directories, locks and addresses (so that what is taken is known early),
controller (which repairs what the kernel lacks), metrics, API, and only then tells systemd that it is ready: a socket
file that is there is served. It stops without touching the kernel: networks and sandboxes go on, and the next start
takes them up again.

Exit status: 0 after a stop that was asked for, 1 when it cannot start or work, 2 for a command line or configuration
that cannot be used.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import logging
import os
import signal
import socket
import ssl
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from control import lean
from control.api.handlers import Context
from control.api.server import (
    ListenError,
    bind_tcp,
    bind_unix,
    build_app,
    remove_stale_socket,
    serve,
)
from control.config import DEFAULT_PATH, Config, ConfigError, listen_address, load
from control.controller import NetworkController
from control.controller_factory import build_controller
from control.errors import ControlError
from control.firewall_watch import FirewallWatcher
from control.link_watch import LinkWatcher
from control.metrics import Metrics, release
from control.metrics.access import Access
from control.metrics.probes import ProbeCollector
from control.metrics.server import build_metrics_app
from control.notify import notify
from control.plugin.ipam import IpamDriver
from control.plugin.network import NetworkDriver
from control.plugin.server import build_plugin_app
from control.prober import Prober
from control.watch import ProcessWatcher
from control.web.page import add_page
from control.workers import Workers
from datapath.link_monitor import LinkMonitor
from datapath.nft_monitor import TableMonitor

if TYPE_CHECKING:
    from aiohttp import web  # imported by `lean`, in its own way

LOG = logging.getLogger("linkspand")

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
_CAPABILITIES: Final = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21}
"""What nothing works without; capabilities(7), linux/capability.h. Others are missed where they are needed."""
_SYSLOG_PRIORITIES: Final = {
    logging.DEBUG: 7,
    logging.INFO: 6,
    logging.WARNING: 4,
    logging.ERROR: 3,
    logging.CRITICAL: 2,
}


class StartError(Exception):
    """linkspand cannot start; the text says why and what to do."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command `linkspand`; returns the exit status."""
    arguments = _parser().parse_args(argv)
    try:
        config = load(arguments.config, _overrides(arguments))
        if arguments.check_config:
            Access(config.metrics)  # looks at the files
    except ConfigError as error:
        print(f"linkspand: {error}", file=sys.stderr)
        return EXIT_USAGE
    if arguments.check_config:
        print(f"{arguments.config or DEFAULT_PATH}: the configuration is valid")
        return 0
    lean.set_up_heap()
    lean.give_back_what_starting_took()
    _log_to_stderr(config.daemon.log_level)
    try:
        is_clean = asyncio.run(run(config))
    except (StartError, ListenError, ControlError, ConfigError) as error:
        LOG.critical("%s", error)
        for note in getattr(error, "__notes__", ()):
            LOG.info("%s", note)
        return EXIT_FAILED
    except OSError as error:
        LOG.critical("cannot go on: %s", error)
        LOG.debug("the same in full", exc_info=error)
        return EXIT_FAILED
    if not is_clean:
        # A worker is still inside a change, and an ordinary exit would wait for its thread. What it was doing is in the
        # store, as after a crash, and the next start deals with it.
        logging.shutdown()
        os._exit(0)
    return 0


async def run(config: Config) -> bool:
    """Works until SIGTERM or SIGINT; returns whether everything that was being done had ended by then.

    A second signal ends the wait for what is being done. Raises StartError, ListenError, ControlError.
    """
    begin = time.monotonic()
    stop = _stop_on_signals()
    require_capabilities()
    async with AsyncExitStack() as stack:
        for lock in _own(config):
            stack.enter_context(lock)
        remove_stale_socket(config.socket_path)
        metrics_address = listen_address(config.metrics.listen)
        metrics_socket = stack.enter_context(bind_tcp(*metrics_address)) if metrics_address else None
        access = Access(config.metrics)
        workers = Workers(config.api.workers)
        stack.callback(workers.close)
        controller = await workers.change(build_controller, config)
        metrics = Metrics(per_endpoint=config.metrics.per_endpoint)
        metrics.watch(controller)
        _probe(controller, config, metrics, workers, stack)
        links = _monitor_links(stack)
        await _start_controller(controller, workers, stack)
        watcher = ProcessWatcher(controller, workers)
        stack.push_async_callback(watcher.close)
        await watcher.start()
        _watch_firewall(controller, workers, stack)
        if links is not None:
            link_watcher = LinkWatcher(links, controller, workers)
            stack.push_async_callback(link_watcher.close)
            link_watcher.start()
        context = Context(controller, config.api, metrics, watcher, workers)
        context.events.start(controller.subscribe)
        if metrics_socket is not None:
            scraper = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="scrape"))
            access.warn(config.metrics)
            app = build_metrics_app(metrics, scraper, access)
            if config.metrics.page:
                add_page(app, controller, scraper, access)
            await _serve(app, metrics_socket, config, stack, access.tls)
        if config.plugin_socket_path is not None:
            await _serve_plugin(config.plugin_socket_path, controller, config, metrics, stack)
        api_socket = stack.enter_context(bind_unix(config.socket_path, config.daemon.group))
        stack.callback(config.socket_path.unlink, missing_ok=True)
        await _serve(build_app(context), api_socket, config, stack)
        LOG.info("linkspand %s is ready on %s after %.3f s", release(), config.socket_path, time.monotonic() - begin)
        notify("READY=1", f"MAINPID={os.getpid()}")
        lean.give_back_what_starting_took()
        await stop.wait()
        notify("STOPPING=1")
        LOG.info("stopping; networks and sandboxes go on")
    return not workers.is_busy


def require_capabilities() -> None:
    """Raises StartError, naming those of _CAPABILITIES that this process does not have; see proc(5), CapEff."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    effective = int(status.partition("CapEff:")[2].split()[0], 16)
    missing = [name for name, number in _CAPABILITIES.items() if not effective >> number & 1]
    if missing:
        raise StartError(
            f"linkspand needs {' and '.join(missing)} to change networks and network namespaces: "
            "run it as root, or with the capabilities that linkspand.service lists"
        )


def _stop_on_signals() -> asyncio.Event:
    """Returns the event that SIGTERM and SIGINT set; the second one exits at once, as a crash would."""
    stop = asyncio.Event()

    def on_signal(number: signal.Signals) -> None:
        if stop.is_set():
            LOG.warning("%s again: exiting at once", number.name)
            logging.shutdown()
            os._exit(EXIT_FAILED)
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    loop.add_signal_handler(signal.SIGHUP, LOG.info, "a changed configuration takes a restart, which no packet notices")
    return stop


class _DirectoryLock:
    """Keeps every other linkspand out of a directory for as long as this process lives."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "linkspand.lock"
        self._file: IO[str] | None = None

    def __enter__(self) -> _DirectoryLock:
        file = open(self._path, "a+", encoding="ascii")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            holder = file.read(20).strip() or "unknown"
            file.close()
            raise StartError(
                f"{self._path.parent} belongs to another linkspand, process {holder}: stop that one, or give this one "
                "directories of its own (--run-dir, --state-dir, --bpffs-dir)"
            ) from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        self._file = file
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()


def _own(config: Config) -> Iterator[_DirectoryLock]:
    """Makes the run and state directories and yields their locks.

    The run directory is 0711: who may use the socket in it is settled by the socket's own mode, so everybody may pass
    through, and the names of other people's sandboxes are not for everybody to list. The state is root's alone.
    """
    for directory, mode in ((config.run_dir, 0o711), (config.state_dir, 0o700)):
        try:
            directory.mkdir(mode=mode, parents=True, exist_ok=True)
            yield _DirectoryLock(directory)
        except OSError as error:
            raise StartError(f"cannot use {directory}: {error.strerror}") from error


async def _start_controller(controller: NetworkController, workers: Workers, stack: AsyncExitStack) -> None:
    try:
        await workers.change(controller.start)
    finally:
        stack.push_async_callback(workers.read, controller.stop)


def _probe(
    controller: NetworkController, config: Config, metrics: Metrics, workers: Workers, stack: AsyncExitStack
) -> None:
    if not config.metrics.prober.enabled:
        return
    prober = Prober(controller, config.metrics.prober)
    metrics.register(ProbeCollector(prober, per_endpoint=config.metrics.per_endpoint))
    stack.push_async_callback(workers.read, prober.close)
    prober.start()


def _watch_firewall(controller: NetworkController, workers: Workers, stack: AsyncExitStack) -> None:
    try:
        monitor = TableMonitor()
    except OSError as error:
        LOG.warning("cannot watch the firewall, what others flush comes back with the next start: %s", error)
        return
    stack.callback(monitor.close)
    watcher = FirewallWatcher(monitor, controller, workers)
    stack.push_async_callback(watcher.close)
    watcher.start()


def _monitor_links(stack: AsyncExitStack) -> LinkMonitor | None:
    """Made before the controller starts, so that no change comes between what that looks at and the watching."""
    try:
        monitor = LinkMonitor()
    except OSError as error:
        LOG.warning("cannot watch the host's devices, endpoints on one that comes back do at the next start: %s", error)
        return None
    stack.callback(monitor.close)
    return monitor


async def _serve_plugin(
    path: Path, controller: NetworkController, config: Config, metrics: Metrics, stack: AsyncExitStack
) -> None:
    """Serves dockerd, with workers of its own: its calls wait for nobody else's."""
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        raise StartError(f"cannot make {path.parent} for the plugin socket: {error.strerror}") from error
    workers = Workers(config.api.workers)
    stack.callback(workers.close)
    sock = stack.enter_context(bind_unix(path, None))
    stack.callback(path.unlink, missing_ok=True)
    routes = [*NetworkDriver(controller).routes(), *IpamDriver(controller).routes()]
    await _serve(build_plugin_app(routes, workers=workers, limits=config.api, metrics=metrics), sock, config, stack)


async def _serve(
    app: web.Application,
    sock: socket.socket,
    config: Config,
    stack: AsyncExitStack,
    tls: ssl.SSLContext | None = None,
) -> None:
    runner = await serve(app, sock, config.api, tls)
    stack.push_async_callback(runner.cleanup)


def _log_to_stderr(level: str) -> None:
    """Under the journal with priorities and no time, which it adds itself (sd-daemon(3)); else with both."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JournalFormatter() if _is_journal(sys.stderr) else _TERMINAL_FORMAT)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)


_TERMINAL_FORMAT: Final = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")


class _JournalFormatter(logging.Formatter):
    """Every line of a record with its priority in front, so that the lines of a stack trace keep it too."""

    def __init__(self) -> None:
        super().__init__("%(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        prefix = f"<{_SYSLOG_PRIORITIES.get(record.levelno, 6)}>"
        return "\n".join(prefix + line for line in super().format(record).splitlines())


def _is_journal(stream: Any) -> bool:
    """Whether the stream is the journal's; see JOURNAL_STREAM in systemd.exec(5)."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="linkspand",
        description="The linkspan daemon. Flags override the configuration file.",
        epilog="Exit status: 0 after a stop that was asked for, 1 when it cannot start or work, 2 for a command line "
        "or configuration that cannot be used.",
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help=f"configuration (default: {DEFAULT_PATH}, if it exists)"
    )
    parser.add_argument("--state-dir", metavar="DIR", help="what outlives a reboot")
    parser.add_argument("--run-dir", metavar="DIR", help="API socket and sandboxes")
    parser.add_argument("--bpffs-dir", metavar="DIR", help="pinned maps and programs; in a bpf file system")
    parser.add_argument("--plugin-socket", metavar="FILE", help='socket for dockerd, or "off"')
    parser.add_argument("--metrics-listen", metavar="IP:PORT", help='where /metrics is served, or "off"')
    parser.add_argument("--group", help="group that may use the API socket")
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"))
    parser.add_argument("--check-config", action="store_true", help="check command line and configuration, and exit")
    parser.add_argument("--version", action="version", version=f"linkspand {release()}")
    return parser


def _overrides(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The flags that were given, as {section: {key: value}}."""
    daemon = {
        name.replace("_", "-"): value
        for name in ("state_dir", "run_dir", "bpffs_dir", "plugin_socket", "group", "log_level")
        if (value := getattr(arguments, name)) is not None
    }
    metrics = {} if arguments.metrics_listen is None else {"listen": arguments.metrics_listen}
    return {"daemon": daemon, "metrics": metrics}


if __name__ == "__main__":
    sys.exit(main())
