"""`headrace prepare` with the real Java: afterwards the first start has nothing left to fetch or to make."""

import subprocess

from headrace.local import broker as kafka
from headrace.local.jars import missing_jars
from headrace.local.paths import cache_dir
from tests.acceptance.stack import headrace

SECONDS = 50.0


def test_nothing_is_left_for_the_first_start(broker_install: kafka.BrokerInstall) -> None:
    done = subprocess.run(headrace("prepare"), capture_output=True, text=True, timeout=SECONDS, check=False)

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "prepared"
    assert missing_jars(cache_dir()) == ()
    assert broker_install.start_cache is None or broker_install.start_cache.exists()
