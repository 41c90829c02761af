"""What doctor finds on this host, under /linkspan/doctor."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from control.api import views
from control.api.handlers import Context, Route, json_response
from control.api.versions import Version


class DoctorHandlers:
    """Both may wait for other nodes, so they run with the changes and hold up nobody who only looks."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._doctor = context.controller.doctor

    def routes(self) -> list[Route]:
        return [
            Route("GET", "/linkspan/doctor", self.examine),
            Route("POST", "/linkspan/doctor/mend", self.mend),
        ]

    async def examine(self, request: web.Request, version: Version) -> web.Response:
        return json_response(await self._context.workers.change(self._examine))

    def _examine(self) -> dict[str, Any]:
        return {
            "findings": [views.finding(each) for each in self._doctor.examine()],
            "attached": self._doctor.attached(),
        }

    async def mend(self, request: web.Request, version: Version) -> web.Response:
        return json_response(await self._context.workers.change(self._mend))

    def _mend(self) -> dict[str, Any]:
        mended, left = self._doctor.mend()
        return {"mended": [views.finding(each) for each in mended], "findings": [views.finding(each) for each in left]}
