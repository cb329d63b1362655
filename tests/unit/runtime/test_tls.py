"""A file that is no certificate is a bad setting, said in one line."""

from pathlib import Path

import pytest

from headrace.runtime.tls import check_authority, check_certificate


def test_what_is_no_certificate_is_refused_by_its_name(tmp_path: Path) -> None:
    nonsense = tmp_path / "tls.pem"
    nonsense.write_text("nonsense")

    with pytest.raises(ValueError, match=r"tls\.pem"):
        check_certificate(nonsense, nonsense)
    with pytest.raises(ValueError, match=r"tls\.pem"):
        check_authority(nonsense)
