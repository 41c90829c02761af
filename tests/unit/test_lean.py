"""What linkspand does without, and that others can still have it."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
import control.daemon
from control import lean
import pyroute2
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
assert not set(lean._UNUSED) & set(sys.modules), sys.modules.keys()
with pyroute2.IPRoute() as ip:
    assert ip.get_links()
from pyroute2.ndb.main import NDB
from pyroute2.netlink.nfnetlink.nftsocket import NFTSocket
assert (NDB.__module__, NFTSocket.__module__) == ("pyroute2.ndb.main", "pyroute2.netlink.nfnetlink.nftsocket")
"""


CERTIFICATES = """
import os, ssl
places = []
ssl.SSLContext.set_default_verify_paths = lambda _: places.append(os.environ.get("SSL_CERT_FILE"))
import control.daemon
assert set(places) <= {os.devnull}, places
"""


AFTER_OTHERS = """
import sys
import pyroute2.ndb.main
import control.daemon
assert sys.modules["pyroute2.ndb.main"].NDB is pyroute2.NDB
"""


def run(program: str) -> None:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_what_is_left_out_of_pyroute2_is_there_for_who_asks() -> None:
    run(PROGRAM)


def test_no_certificates_are_loaded() -> None:
    run(CERTIFICATES)


def test_what_others_have_imported_stays() -> None:
    run(AFTER_OTHERS)
