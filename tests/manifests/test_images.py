"""What images are made of, as far as it can be seen without Docker."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

import gateway.settings
import router.settings
from tests.manifests.rendering import K8S, ROOT

IMAGES = ROOT / "deploy" / "images"
DOCKERFILES = sorted(IMAGES.glob("*/Dockerfile"))
SCRIPTS = sorted([*IMAGES.glob("*.sh"), *K8S.rglob("*.sh")])
ADMIN_PORTS = {"gateway": gateway.settings.AdminSettings().port, "router": router.settings.AdminSettings().port}
SHELL = {"#!/bin/sh": "sh"}


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.parent.name)
def test_a_dockerfile_is_two_stages_of_one_pinned_base(path: Path) -> None:
    text = path.read_text()

    assert re.search(r"^ARG BASE=[\w./-]+:[\w.-]+@sha256:[0-9a-f]{64}$", text, re.MULTILINE)
    assert re.findall(r"^FROM (.*)$", text, re.MULTILINE) == ["${BASE} AS build", "${BASE}"]
    assert "latest" not in text


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.parent.name)
def test_an_image_runs_as_nobody_and_can_be_asked(path: Path) -> None:
    process, last = path.parent.name, path.read_text().rpartition("\nFROM ")[2]

    assert "USER 10001:10001" in last
    assert f"http://127.0.0.1:{ADMIN_PORTS[process]}/livez" in last
    assert last.rstrip().endswith(f'ENTRYPOINT ["headrace"]\nCMD ["{process}"]')
    assert not re.search(r"^(ADD|RUN) ", last, re.MULTILINE)


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.parent.name)
def test_an_image_is_made_by_the_script_that_a_test_can_run(path: Path) -> None:
    """One RUN, and all that the script reads is copied before it."""
    process, text = path.parent.name, path.read_text()

    assert re.findall(r"^RUN (.*)$", text, re.MULTILINE) == [
        f'["/src/deploy/images/install-{process}.sh", "/src", "/opt/headrace"]'
    ]
    wanted = {"requirements/runtime.txt", "requirements/build.txt", "pyproject.toml", "README.md", "LICENSE"}
    wanted |= {"gateway", "router", "aggregator", "headrace"}
    copied = {word for line in re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.MULTILINE) for word in line.split()}
    assert wanted <= copied
    assert all((ROOT / each).exists() for each in copied)
    ignored = path.with_name("Dockerfile.dockerignore").read_text().split()
    assert wanted <= {each.removeprefix("!") for each in ignored if each.startswith("!")}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_script_is_understood_by_its_shell(path: Path) -> None:
    shell = SHELL.get(path.read_text().partition("\n")[0], "bash")

    done = subprocess.run([shell, "-n", str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    if (shellcheck := shutil.which("shellcheck")) is not None:
        done = subprocess.run(
            [shellcheck, "-x", str(path)], capture_output=True, text=True, check=False, cwd=path.parent
        )
        assert done.stdout == ""


def test_pinning_knows_every_image_and_writes_its_digest(tmp_path: Path) -> None:
    """pin.sh on a copy, with a docker that answers by the name it is asked for."""
    copy = tmp_path / "repository"
    shutil.copytree(IMAGES, copy / "deploy" / "images")
    shutil.copytree(K8S / "overlays" / "images", copy / "deploy" / "k8s" / "overlays" / "images")
    tools = tmp_path / "tools"
    tools.mkdir()
    docker = tools / "docker"
    answer = 'echo "sha256:$(printf %s "$4" | sha256sum | cut -c1-64)"\n'
    docker.write_text(f"#!/bin/sh\ncase $4 in */headrace/*) exit 1; esac\n{answer}")
    docker.chmod(0o755)
    pin = copy / "deploy" / "images" / "pin.sh"
    environment = {"PATH": f"{tools}:/usr/bin:/bin"}

    assert subprocess.run([pin, "--check"], env=environment, capture_output=True, check=False).returncode == 1
    # Ours are not pushed yet, and are built on one that must be pinned.
    assert subprocess.run([pin], env=environment, capture_output=True, check=False).returncode == 1
    subprocess.run([pin, "--base"], env=environment, capture_output=True, check=True)
    unpinned = subprocess.run([pin, "--check"], env=environment, capture_output=True, text=True, check=False)
    assert unpinned.stdout.count("digest: ") == 2
    docker.write_text(f"#!/bin/sh\n{answer}")
    subprocess.run([pin], env=environment, capture_output=True, check=True)
    assert subprocess.run([pin, "--check"], env=environment, capture_output=True, check=False).returncode == 0

    listed = K8S / "overlays" / "images" / "kustomization.yaml"
    before = yaml.safe_load(listed.read_text())["images"]
    after = yaml.safe_load((copy / listed.relative_to(ROOT)).read_text())["images"]
    assert [{**each, "digest": ""} for each in after] == [{**each, "digest": ""} for each in before]
    assert len({each["digest"] for each in after}) == len(after)
