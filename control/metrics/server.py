"""/metrics over HTTP."""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor

from aiohttp import web

from control.metrics import Metrics
from control.metrics.access import Access
from control.metrics.text import OpenMetrics, Text
from control.metrics.writer import Writer


def build_metrics_app(metrics: Metrics, scraper: Executor, access: Access | None = None) -> web.Application:
    """Returns the application that serves /metrics; `scraper` does the reading, so that the loop never waits for it.

    Everybody may scrape unless `access` says who.
    """

    async def scrape(request: web.Request) -> web.StreamResponse:
        """Part by part: the whole of thousands of endpoints is many megabytes."""
        loop = asyncio.get_running_loop()
        writer = await loop.run_in_executor(scraper, preferred, request.headers.get("Accept", ""))
        response = web.StreamResponse(headers={"Content-Type": writer.media_type})
        parts = metrics.expose(writer)
        # Before the first part is there nothing is sent, so that what fails till then is answered with an error.
        part = await loop.run_in_executor(scraper, next, parts, None)
        await response.prepare(request)
        while part is not None:
            await response.write(part)
            part = await loop.run_in_executor(scraper, next, parts, None)
        await response.write_eof()
        return response

    app = web.Application()
    app.router.add_get("/metrics", scrape if access is None else access.guard(scrape))
    return app


def preferred(accept: str) -> Writer:
    """The writer of the format that a scraper likes best of those that there are; text's for one that says nothing.

    See RFC 9110, section 12.5.1. Loads the library for the format, the first time.
    """
    best, found = 0.0, "text/plain"
    for choice in accept.split(","):
        media, *parameters = (part.strip().lower() for part in choice.split(";"))
        named = dict(parameter.partition("=")[::2] for parameter in parameters)
        try:
            weight = float(named.get("q", "1"))
        except ValueError:
            continue
        if weight > best and _is_served(media, named):
            best, found = weight, media
    if found == _PROTOBUF:
        from control.metrics.protobuf import Protobuf  # 4 MB, which only who scrapes native histograms needs

        return Protobuf()
    return OpenMetrics() if found == "application/openmetrics-text" else Text()


_PROTOBUF = "application/vnd.google.protobuf"


def _is_served(media: str, named: dict[str, str]) -> bool:
    if media == _PROTOBUF:
        return named.get("proto") == "io.prometheus.client.metricfamily" and named.get("encoding") == "delimited"
    return media in ("text/plain", "application/openmetrics-text")
