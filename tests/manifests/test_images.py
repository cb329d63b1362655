"""What images are made of, and how they are built and pushed, as far as it can be seen without Docker."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

import gateway.settings
import router.settings
from tests.cluster.kubectl import Kubectl
from tests.cluster.node.deployed.headrace import Headrace, ImageMissingError
from tests.manifests.rendering import K8S, ROOT
from tests.parts import missing

IMAGES = ROOT / "deploy" / "images"
DOCKERFILE = (IMAGES / "Dockerfile").read_text(encoding="utf-8")
SCRIPTS = sorted([*IMAGES.glob("*.sh"), *K8S.rglob("*.sh"), ROOT / ".ci" / "run"])
ADMIN_PORTS = {"gateway": gateway.settings.AdminSettings().port, "router": router.settings.AdminSettings().port}
PROCESSES = tuple(ADMIN_PORTS)
SHELL = {"#!/bin/sh": "sh"}
ZEROS = f"@sha256:{'0' * 64}"
PINNED = f"@sha256:{'1' * 64}"
(BASE,) = re.findall(r"^ARG BASE=([^@]*)", DOCKERFILE, re.MULTILINE)
BY_TAG = f" --build-arg BASE={BASE}"
DIGEST = f"sha256:{'7' * 64}"
"""What the stand-in for Docker builds."""
DOCKER = f"""#!/bin/sh
echo "docker $*" >>"$CALLS"
case $2 in
  inspect) [ -e "$CALLS.builder" ] ;;
  create) touch "$CALLS.builder" ;;
  build)
    while [ $# -gt 0 ]; do
      [ "$1" != --metadata-file ] || printf '{{\\n  "containerimage.digest": "{DIGEST}"\\n}}\\n' >"$2"
      shift
    done ;;
esac
"""


def test_the_images_are_stages_of_one_pinned_base() -> None:
    assert re.search(r"^ARG BASE=[\w./-]+:[\w.-]+@sha256:[0-9a-f]{64}$", DOCKERFILE, re.MULTILINE)
    assert re.findall(r"^FROM (.*)$", DOCKERFILE, re.MULTILINE) == [
        "${BASE} AS build",
        "${BASE} AS installed",
        *(f"installed AS {process}" for process in PROCESSES),
    ]
    assert "latest" not in DOCKERFILE
    # A frontend by name would be one more image to pin.
    assert "syntax=" not in DOCKERFILE


@pytest.mark.parametrize("process", PROCESSES)
def test_an_image_runs_as_nobody_and_can_be_asked(process: str) -> None:
    _, *common = _stage("installed").splitlines()
    _, *own = _stage(process).splitlines()

    assert "USER 10001:10001" in common
    assert 'ENTRYPOINT ["headrace"]' in common
    assert f'LABEL org.opencontainers.image.title="headrace-{process}"' in own
    assert f"http://127.0.0.1:{ADMIN_PORTS[process]}/livez" in "\n".join(own)
    assert f'CMD ["{process}"]' in own
    assert not [line for line in (*common, *own) if line.startswith(("ADD ", "RUN "))]


def test_an_image_is_made_by_the_script_that_a_test_can_run() -> None:
    """One RUN, and all that the script reads is copied before it."""
    assert re.findall(r"^RUN (.*)$", DOCKERFILE, re.MULTILINE) == [
        '["/src/deploy/images/install.sh", "/src", "/opt/headrace"]'
    ]
    wanted = {"requirements/runtime.txt", "requirements/build.txt", "pyproject.toml", "README.md", "LICENSE"}
    wanted |= {"gateway", "router", "aggregator", "headrace", "deploy/images/install.sh"}
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", _stage("build"), re.MULTILINE)
    assert {word for line in copied for word in line.split()} == wanted
    assert all((ROOT / each).exists() for each in wanted)
    ignored = (IMAGES / "Dockerfile.dockerignore").read_text(encoding="utf-8").split()
    assert {each.removeprefix("!") for each in ignored if each.startswith("!")} == wanted


def _stage(name: str) -> str:
    """A stage of the Dockerfile, its FROM included."""
    (found,) = re.findall(rf"^FROM \S+ AS {name}\n.*?(?=^FROM |\Z)", DOCKERFILE, re.MULTILINE | re.DOTALL)
    return str(found)


each_script = pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))


@each_script
def test_a_script_is_understood_by_its_shell(path: Path) -> None:
    shell = SHELL.get(path.read_text(encoding="utf-8").partition("\n")[0], "bash")

    done = subprocess.run([shell, "-n", str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@each_script
def test_a_script_has_none_of_the_usual_faults(path: Path) -> None:
    shellcheck = shutil.which("shellcheck") or missing("shellcheck", "apt-get install shellcheck")

    done = subprocess.run([shellcheck, "-x", str(path)], capture_output=True, text=True, check=False, cwd=path.parent)
    assert (done.returncode, done.stdout) == (0, "")


class Workplace:
    """A commit of deploy/images, with stand-ins for the tools, which write down how they are called."""

    def __init__(self, folder: Path, *, base: str) -> None:
        self.home = folder / "repository"
        self._calls = folder / "calls"
        self._tools = folder / "tools"
        self.dockerfile = self.home / "deploy" / "images" / "Dockerfile"
        shutil.copytree(IMAGES, self.home / "deploy" / "images")
        for name in ("pyproject.toml", ".gitignore"):
            shutil.copy(ROOT / name, self.home)
        self.dockerfile.write_text(re.sub(r"(ARG BASE=[^@]*)@\S+", rf"\1{base}", DOCKERFILE), encoding="utf-8")
        self._tools.mkdir()
        self.tool("docker", DOCKER)
        for name in ("syft", "trivy"):
            self.tool(name, f'#!/bin/sh\necho "{name} $*" >>"$CALLS"\n')
        self._environment = {
            **{f"GIT_{who}_{what}": "test" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
            "GIT_CONFIG_GLOBAL": os.devnull,
            "PATH": f"{self._tools}:/usr/bin:/bin",
            "CALLS": str(self._calls),
        }
        git = shutil.which("git") or missing("git", "apt-get install git")
        for words in (("init", "--quiet"), ("add", "--all"), ("commit", "--quiet", "--message=all")):
            subprocess.run([git, *words], cwd=self.home, env=self._environment, check=True)

    def tool(self, name: str, text: str) -> None:
        """Put a program on the path of the scripts."""
        (self._tools / name).write_text(text, encoding="utf-8")
        (self._tools / name).chmod(0o755)

    def build(self, *words: str) -> "subprocess.CompletedProcess[str]":
        """Call build.sh."""
        return self.run("build.sh", *words)

    def run(self, script: str, *words: str) -> "subprocess.CompletedProcess[str]":
        """Call one of the scripts."""
        return subprocess.run(
            [self.dockerfile.with_name(script), *words],
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def calls(self) -> list[str]:
        """How the tools were called since it was asked last, without what is the same for every build."""
        told = self._calls.read_text(encoding="utf-8") if self._calls.exists() else ""
        self._calls.unlink(missing_ok=True)
        return re.sub(r" --file \S+ --build-arg VERSION=\S+ --build-arg REVISION=\w+", "", told).splitlines()


def test_loading_works_on_a_clone_whose_base_has_no_digest(tmp_path: Path) -> None:
    """By the tag, which is told; a digest that is there stays what it is."""
    clone, pinned = (Workplace(tmp_path / name, base=digest) for name, digest in (("c", ZEROS), ("p", PINNED)))
    pinned.tool("syft", "#!/bin/sh\nexit 1\n")

    for place, argument in ((clone, BY_TAG), (pinned, "")):
        done = place.build("--load")

        assert done.returncode == 0, done.stderr
        assert place.calls() == [
            f"docker buildx build{argument} --target {process} --load --tag headrace-{process}:0.1.0 ."
            for process in PROCESSES
        ]
        assert (BASE in done.stderr) is (place is clone)


LOOKED_FOR = ["docker buildx inspect"]
MADE = [*LOOKED_FOR, "docker buildx create --name headrace --driver docker-container"]
BUILT = (
    "--platform linux/amd64 --sbom=true --provenance=mode=max"
    " --output type=oci,tar=false,dest=build/images/PROCESS,rewrite-timestamp=true"
    " --metadata-file build/images/PROCESS.json"
)
REGISTRY = "registry.example.org/headrace"


def _examined(argument: str = "") -> list[str]:
    """How both images are built as files, listed and scanned."""
    return [
        call
        for process in PROCESSES
        for call in (
            f"docker buildx build{argument} --target {process} {BUILT.replace('PROCESS', process)} .",
            f"syft scan oci-dir:build/images/{process} --output spdx-json=build/images/{process}.spdx.json",
            f"trivy image --input build/images/{process} --exit-code 1 --severity HIGH,CRITICAL --ignore-unfixed",
        )
    ]


def test_a_check_lists_and_scans_both_images_and_pushes_none(tmp_path: Path) -> None:
    """On a checkout that is being worked at; with a builder of its own, which is made once."""
    place = Workplace(tmp_path, base=ZEROS)
    (place.home / "unfinished").touch()

    for builder in (MADE, LOOKED_FOR):
        done = place.build("--check")

        assert done.returncode == 0, done.stderr
        assert place.calls() == [*builder, *_examined(BY_TAG)]


def test_what_is_pushed_is_what_was_scanned(tmp_path: Path) -> None:
    """Built once, and pushed from the file by its digest, after both were scanned."""
    place = Workplace(tmp_path, base=PINNED)

    done = place.build("--push", REGISTRY)

    assert done.returncode == 0, done.stderr
    pushed = [
        f"docker buildx imagetools create --tag {REGISTRY}/{process}:0.1.0 oci-layout://build/images/{process}@{DIGEST}"
        for process in PROCESSES
    ]
    assert place.calls() == [*MADE, *_examined(), *pushed]
    assert f"router {DIGEST}" in done.stdout


def test_a_hole_in_one_image_keeps_both_from_being_pushed(tmp_path: Path) -> None:
    place = Workplace(tmp_path, base=PINNED)
    place.tool("trivy", '#!/bin/sh\necho "trivy $*" >>"$CALLS"\ncase $* in *router*) exit 1 ;; esac\n')

    assert place.build("--push", REGISTRY).returncode == 1
    assert place.calls() == [*MADE, *_examined()]


def test_only_a_commit_on_a_pinned_base_is_pushed(tmp_path: Path) -> None:
    unpinned, changed = (Workplace(tmp_path / name, base=digest) for name, digest in (("u", ZEROS), ("c", PINNED)))
    (changed.home / "unfinished").touch()

    for place, reason in ((unpinned, "pin.sh --base"), (changed, "uncommitted changes")):
        done = place.build("--push", REGISTRY)

        assert done.returncode == 1
        assert reason in done.stderr
        assert place.calls() == []


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


def test_a_digest_that_is_not_told_is_not_written(tmp_path: Path) -> None:
    """Of the base, too, which is the last to be asked for."""
    place = Workplace(tmp_path, base=ZEROS)
    overlay = place.home / "deploy" / "k8s" / "overlays" / "images"
    shutil.copytree(K8S / "overlays" / "images", overlay)
    before = place.dockerfile.read_text(encoding="utf-8")
    place.tool("docker", f"#!/bin/sh\ncase $4 in *python*) exit 1 ;; esac\necho {DIGEST}\n")

    assert place.run("pin.sh").returncode == 1
    assert place.dockerfile.read_text(encoding="utf-8") == before


def test_an_image_that_is_missing_ends_the_wait_for_pods(tmp_path: Path) -> None:
    """On a cluster of somebody's, which the images of tests/cluster were not loaded into."""
    waiting = {"waiting": {"reason": "ImagePullBackOff"}}
    pods = [
        {"status": {"initContainerStatuses": [{"image": "localhost/triton:1", "state": waiting}]}},
        {"status": {"containerStatuses": [{"image": "localhost/envoy:1", "state": {"running": {}}}]}},
        {"status": {}},
    ]
    listed = tmp_path / "pods.json"
    listed.write_text(json.dumps({"items": pods}), encoding="utf-8")
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(f"#!/bin/sh\ncase $1 in apply) ;; get) cat {listed} ;; *) exit 1 ;; esac\n", encoding="utf-8")
    kubectl.chmod(0o755)

    with pytest.raises(ImageMissingError, match=r"not to be had: localhost/triton:1; .*images\.tar"):
        Headrace(Kubectl(kubectl, "", tmp_path)).deploy(seconds=2)
