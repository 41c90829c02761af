"""/metrics over HTTP."""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor

from aiohttp import web

from control.metrics import Metrics
from control.metrics.text import Format


def build_metrics_app(metrics: Metrics, scraper: Executor) -> web.Application:
    """Returns the application that serves /metrics; `scraper` does the reading, so that the loop never waits for it."""

    async def scrape(request: web.Request) -> web.StreamResponse:
        """Part by part: the whole of thousands of endpoints is many megabytes."""
        form = preferred(request.headers.get("Accept", ""))
        response = web.StreamResponse(headers={"Content-Type": form.value})
        loop = asyncio.get_running_loop()
        parts = metrics.expose(form)
        # Before the first part is there nothing is sent, so that what fails till then is answered with an error.
        part = await loop.run_in_executor(scraper, next, parts, None)
        await response.prepare(request)
        while part is not None:
            await response.write(part)
            part = await loop.run_in_executor(scraper, next, parts, None)
        await response.write_eof()
        return response

    app = web.Application()
    app.router.add_get("/metrics", scrape)
    return app


def preferred(accept: str) -> Format:
    """The format that a scraper likes best of those that there are; text for one that says nothing. See RFC 9110,
    section 12.5.1."""
    best, found = 0.0, Format.TEXT
    for choice in accept.split(","):
        media, *parameters = (part.strip() for part in choice.split(";"))
        named = dict(parameter.partition("=")[::2] for parameter in parameters)
        try:
            weight = float(named.get("q", "1"))
        except ValueError:
            continue
        form = _BY_MEDIA.get(media.lower())
        if form is not None and weight > best:
            best, found = weight, form
    return found


_BY_MEDIA = {"text/plain": Format.TEXT, "application/openmetrics-text": Format.OPENMETRICS}
