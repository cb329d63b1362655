"""What the documentation says of the code, compared with the code."""

import ast
import re
import subprocess
import sys
from collections.abc import Collection
from itertools import pairwise, takewhile
from pathlib import Path

import pytest
import typer.main
from aiokafka.admin import NewTopic

import aggregator.settings as aggregator
import gateway.settings as gateway
import router.settings as router
from gateway.errors import leaves
from headrace.bus.announcements import gateway_key, model_key, repository_key, router_key, statistics_key
from headrace.bus.control import Topics
from headrace.bus.envelope import ENVELOPE_HEADER
from headrace.bus.settings import KafkaSettings, TopicSettings
from headrace.bus.topics import ANNOUNCEMENTS_TOPIC, MAX_TOPIC_LENGTH, USAGE_TOPIC, consumer_group, request_topic
from headrace.bus.v1.announcement_pb2 import Announcement
from headrace.bus.v1.envelope_pb2 import Envelope
from headrace.cli import app
from scripts import settings_reference

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
TOPICS = DOCS / "reference" / "topics.md"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *ROOT.glob("model_repository/*/README.md")])
DECISIONS = sorted((DOCS / "adr").glob("*.md"))
EXAMPLES = sorted(path for path in (ROOT / "examples").iterdir() if path.suffix in {".py", ".sh"})
MODULES = (
    "gateway",
    "router",
    "aggregator",
    "headrace.bus",
    "headrace.store",
    "headrace.runtime",
    "headrace.local",
    "headrace.cli",
)


# Pages as a whole.


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_leads_somewhere(page: Path) -> None:
    text = re.sub(r"`[^`]*`", "", text_of(page))
    targets = [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]

    broken = []
    for target in targets:
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        if not linked.exists() or (anchor and anchor not in anchors(linked)):
            broken.append(target)

    assert broken == []


def test_the_index_lists_every_page() -> None:
    index = DOCS / "README.md"
    linked = {(DOCS / target).resolve() for target in re.findall(r"\]\(([^)#\s]+)\)", text_of(index))}

    assert {page for page in DOCS.rglob("*.md") if page != index} <= linked


def test_the_readme_has_the_default_ports() -> None:
    rows = [(row[0], row[1]) for row in table(ROOT / "README.md", "port")]

    assert rows[:5] == [
        (str(gateway.GrpcSettings().port), "gateway"),
        (str(gateway.AdminSettings().port), "gateway"),
        (str(gateway.ReplySettings(advertised_host="gateway").port), "gateway"),
        (str(router.AdminSettings().port), "router"),
        (str(aggregator.AdminSettings().port), "aggregator"),
    ]


def test_every_command_of_the_readme_exists() -> None:
    text = text_of(ROOT / "README.md")
    command = typer.main.get_command(app)
    targets = set(re.findall(r"^([a-z]+):", text_of(ROOT / "Makefile"), re.MULTILINE))

    named = set(re.findall(r"(?:`|\$ )make ([a-z]+)", text))
    assert named >= {"run", "test", "check"}
    assert named <= targets
    called = set(re.findall(r"(?:`|\$ )(?:\.venv/bin/)?headrace ([a-z]+)", text))
    assert called >= {"infer", "models", "status", "doctor", "up"}
    assert called <= set(getattr(command, "commands", ()))


@pytest.mark.parametrize("page", ["README.md", "docs/architecture.md", "docs/adr/0004-delivery-semantics.md"])
def test_every_reason_that_a_page_names_exists(page: str) -> None:
    status_codes = {"NOT_SERVING", "MODEL", "LANE", "POOL", "KEY"}
    named = set(re.findall(r"`([A-Z]+(?:_[A-Z]+)+)`", text_of(ROOT / page))) - status_codes

    assert named
    assert named <= {leaf.reason for leaf in leaves()}


def test_the_changelog_begins_with_what_is_not_released() -> None:
    assert re.findall(r"^## (.+)$", text_of(ROOT / "CHANGELOG.md"), re.MULTILINE)[0] == "[Unreleased]"


# Architecture.


def test_the_module_table_agrees_with_folders_and_imports() -> None:
    """Each module is there, with the modules of ours that it imports."""
    told = {
        row[0].strip("`").rstrip("/").replace("/", "."): set(re.findall(r"`([\w.]+)`", row[2]))
        for row in table(DOCS / "architecture.md", "module")
    }

    assert told == {module: imports_of(module) for module in MODULES}
    assert {path.name for path in (ROOT / "headrace").iterdir() if (path / "__init__.py").exists()} == {
        module.removeprefix("headrace.") for module in MODULES if module.startswith("headrace.")
    }


def test_every_file_that_the_architecture_names_exists() -> None:
    named = re.findall(r"`(\.?[\w./-]+(?:/|\.py))`", text_of(DOCS / "architecture.md"))

    assert len(named) > 10
    files_of_each_process = {"__main__.py", "app.py", "settings.py", "__init__.py"}
    assert [name for name in named if name not in files_of_each_process and not (ROOT / name).exists()] == []


# Decisions.


def test_decisions_are_numbered_without_a_gap() -> None:
    assert [int(path.name[:4]) for path in DECISIONS] == list(range(1, len(DECISIONS) + 1))


@pytest.mark.parametrize("page", DECISIONS, ids=lambda page: page.stem)
def test_a_decision_is_one_page_of_the_agreed_form(page: Path) -> None:
    text = text_of(page)

    assert text.startswith(f"# {int(page.name[:4])}. ")
    assert re.search(r"^Status: (provisional|accepted|superseded by )", text, re.MULTILINE)
    sections = ["Context", "Decision", "Alternatives", "Consequences", "Revisit when"]
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == sections
    assert len(text.split()) <= 500


def test_the_index_has_every_decision_with_its_title() -> None:
    index = text_of(DOCS / "README.md")

    for page in DECISIONS:
        number, title = text_of(page).splitlines()[0].removeprefix("# ").split(". ", 1)
        assert f"{number}. [{title}](adr/{page.name})" in index


# Settings.


def test_the_settings_page_is_what_the_settings_give() -> None:
    """`.venv/bin/python scripts/settings_reference.py` writes it anew."""
    assert text_of(settings_reference.PAGE) == settings_reference.page()


def test_every_setting_is_one_whole_row() -> None:
    """A table ends where a line does not begin with a bar."""
    lines = text_of(settings_reference.PAGE).splitlines()
    rows = [line for line in lines if line.startswith("|")]

    assert {(len(cells(row)), row.endswith(" |")) for row in rows} == {(4, True)}
    assert [line for before, line in pairwise(lines) if before.startswith("|") and line and line not in rows] == []


def test_the_settings_page_says_nothing_that_the_settings_say_themselves() -> None:
    rows = {row[0].strip("`"): row[3] for row in table(settings_reference.PAGE, "name", every=True)}

    assert {name: rows.get(name) for name in settings_reference.MEANINGS} == settings_reference.MEANINGS


# Topics.


def test_the_topics_page_encodes_names_as_the_code_does() -> None:
    rows = table(TOPICS, "pool")

    assert len(rows) >= 4
    for pool, model, topic in rows:
        assert request_topic(bare(pool), "interactive", bare(model)) == bare(topic)


def test_the_topics_page_has_the_names_of_topics_and_group() -> None:
    names = [bare(row[1]) for row in table(TOPICS, "what")]

    requests = request_topic("POOL", "interactive", "MODEL").replace("interactive", "LANE")
    group = consumer_group("POOL", "interactive").replace("interactive", "LANE")
    assert names == [requests, group, ANNOUNCEMENTS_TOPIC, USAGE_TOPIC]
    assert f"at most {MAX_TOPIC_LENGTH} characters" in text_of(TOPICS)


class RecordedTopics(Topics):
    """Keeps what would be created."""

    async def _ensure(self, topics: list[NewTopic], group: str | None) -> None:
        self.group = group
        (self.asked,) = topics


@pytest.fixture
def topics() -> RecordedTopics:
    return RecordedTopics(KafkaSettings(), TopicSettings(), client_id="test")


async def test_the_topics_page_has_the_configs_of_a_request_topic(topics: RecordedTopics) -> None:
    await topics.ensure_requests(["headrace.default.interactive.simple"], "headrace.default.interactive")

    assert configs(TOPICS, "from") == topics.asked.topic_configs
    assert f"`HEADRACE_TOPICS__REQUEST_PARTITIONS` ({topics.asked.num_partitions})" in text_of(TOPICS)


async def test_the_topics_page_has_the_configs_of_the_announcements(topics: RecordedTopics) -> None:
    await topics.ensure_announcements()

    assert configs(TOPICS, "why") == topics.asked.topic_configs
    assert topics.asked.num_partitions == 1


async def test_the_topics_page_has_the_configs_of_usage(topics: RecordedTopics) -> None:
    await topics.ensure_usage()

    assert configs(TOPICS, "reason") == topics.asked.topic_configs
    assert topics.asked.num_partitions == 1


def test_the_topics_page_has_every_key_of_the_announcements() -> None:
    rows = table(TOPICS, "key", columns=4)

    assert [bare(row[0]) for row in rows] == [
        gateway_key("ID"),
        router_key("POOL", "ID"),
        model_key("POOL", "ID", "MODEL"),
        statistics_key("POOL", "ID", "MODEL"),
        repository_key("POOL", "MODEL"),
    ]
    assert [bare(row[3]) for row in rows] == [field.name for field in Announcement.DESCRIPTOR.fields]


def test_the_topics_page_has_the_envelope_field_by_field() -> None:
    assert [bare(row[0]) for row in table(TOPICS, "field")] == [field.name for field in Envelope.DESCRIPTOR.fields]
    assert f"header `{ENVELOPE_HEADER}`" in text_of(TOPICS)


# Examples.


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_short_and_linked_from_the_readme(example: Path) -> None:
    assert len(text_of(example).splitlines()) < 60
    assert f"(examples/{example.name})" in text_of(ROOT / "README.md")


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_without_arguments_says_how_it_is_used(example: Path) -> None:
    interpreter = sys.executable if example.suffix == ".py" else "bash"

    done = subprocess.run([interpreter, str(example)], capture_output=True, text=True, timeout=30, check=False)

    assert done.returncode != 0
    assert done.stderr.startswith("usage: ")
    assert "HOST:PORT KEY" in done.stderr


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def bare(cell: str) -> str:
    return cell.strip("`")


def anchors(page: Path) -> Collection[str]:
    """What a page's headings can be linked to as."""
    headings = re.findall(r"^#+ (.+)$", text_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def table(page: Path, first: str, *, columns: int | None = None, every: bool = False) -> list[list[str]]:
    """The rows of the page's table whose first heading is `first`; of all such tables with `every`."""
    lines = text_of(page).splitlines()
    rows = []
    for number, line in enumerate(lines):
        head = cells(line)
        if line.startswith("|") and head[0] == first and (columns is None or len(head) == columns):
            rows += [cells(row) for row in takewhile(lambda row: row.startswith("|"), lines[number + 2 :])]
            if not every:
                break
    assert rows, f"{page.name} has no table that begins with {first}"
    return rows


def configs(page: Path, last: str) -> dict[str, str]:
    """Name and value of the table of topic configs whose last heading is `last`."""
    lines = text_of(page).splitlines()
    start = lines.index(f"| config | value | {last} |")
    rows = [cells(row) for row in takewhile(lambda row: row.startswith("|"), lines[start + 2 :])]
    return {bare(row[0]): bare(row[1]) for row in rows}


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def imports_of(module: str) -> set[str]:
    """The modules of ours that a module imports, itself left out."""
    found = set()
    for path in (ROOT / module.replace(".", "/")).rglob("*.py"):
        for node in ast.walk(ast.parse(text_of(path))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                continue
            found |= {other for other in MODULES for name in names if f"{name}.".startswith(f"{other}.")}
    return found - {module}
