"""What a file of tenants may say, and what is said about one that is wrong."""

import re
from pathlib import Path

import pytest

from octavo_protocol.errors import ConfigError
from octavo_router.metrics import RouterMetrics
from octavo_router.tenancy.directory import key_hash, load_directory
from octavo_router.tenancy.forms import (
    BudgetsForm,
    LimitsForm,
    PriorityForm,
    SharedPrefixForm,
    TenantForm,
)
from octavo_router.tenancy.tenant import Caller, Limits, Tenant
from octavo_router.tenancy.tenants_file import parse_tenants

PAGE = Path(__file__).parents[4] / "docs" / "tenancy.md"
SECRET = "0123456789abcdef" * 2
HASH = key_hash(b"sesame")
GOOD = f"""\
secret: {SECRET}
tenants:
  - name: acme
    keys: ["{HASH}", {{id: ci, hash: "{key_hash(b"other")}"}}]
    models: [gpt, "llama-*"]
    weight: 2
    priority: {{default: 0, highest: -5}}
    limits: {{requests_per_minute: 60, tokens_per_minute: 1000, concurrency: 5,
             max_output_tokens: 100}}
    budgets: {{tokens_per_day: 5000, tokens_per_month: 50000}}
    cache_group: friends
    may_share: [docs]
    may_override: [priority, replica]
  - name: small
    priority: 3
aliases:
  gpt: llama-a
  canary: [{{model: llama-a, weight: 90}}, {{model: llama-b, weight: 10}}]
  steady: {{targets: [{{model: llama-a}}], sticky: session}}
shared_prefixes:
  - {{name: assistant, system: Be kind., tenants: [small], cache_groups: ["fri*", docs]}}
  - {{name: guide, text: Q. A., models: ["llama-*"]}}
"""


def write(folder: Path, text: str, name: str = "tenants.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_says_all_that_a_tenant_is(tmp_path: Path) -> None:
    directory = load_directory(write(tmp_path, GOOD))
    acme = Tenant(
        "acme",
        models=("gpt", "llama-*"),
        weight=2.0,
        priority=0,
        highest_priority=-5,
        limits=Limits(60, 1000, 5, 100, 5000, 50000),
        cache_group="friends",
        may_share=frozenset({"docs"}),
        may_override=frozenset({"priority", "replica"}),
    )

    assert directory.tenants == (acme, Tenant("small", priority=3, highest_priority=3))
    assert directory.authenticate(b"sesame") == Caller(acme, HASH[7:15])
    assert directory.authenticate(b"other") == Caller(acme, "ci")
    assert directory.authenticate(b"open") is None
    assert [acme.may_use(name) for name in ("gpt", "llama-x", "x")] == [True, True, False]
    assert [(each.name, each.text, each.messages) for each in directory.shared_prefixes] == [
        ("assistant", "", (("system", "Be kind."),)),
        ("guide", "Q. A.", ()),
    ]
    assert {name: alias.sticky for name, alias in directory.aliases.items()} == {
        "gpt": None,
        "canary": None,
        "steady": "session",
    }


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("weight: 2", "weight: 0", "line 6: tenants.0.weight: Input should be greater than 0"),
        ("weight: 2", "wieght: 2", "line 6: tenants.0.wieght: there is no such field"),
        ("concurrency: 5", "concurrency: 0", "line 8: tenants.0.limits.concurrency: Input"),
        ("highest: -5", "highest: 5", "line 7: tenants.0.priority: highest must be at most"),
        (HASH, "sesame", "line 4: tenants.0.keys.0.hash: write sha256: and 64 hexadecimal digits"),
        ("name: small", "name: a/b", "line 14: tenants.1.name: use letters, digits and ._-"),
        ("name: small", "name: acme", "the tenant 'acme' is given twice; keep one"),
        ("weight: 2", "name: x", "line 6: 'name' is given twice; keep one"),
        ("other", "sesame", "is given twice"),
        ("[priority, replica]", "[key]", "line 13: tenants.0.may_override.0: Input should be"),
        (SECRET, "short", "line 1: secret: String should have at least 32 characters"),
        (f"secret: {SECRET}\n", "", "`secret` must be given once, it is given 0 times"),
        ("weight: 90}, {model: llama-b, weight: 10}", "weight: 0}", "line 18: aliases.canary"),
        ("gpt: llama-a", "gpt: canary", "'gpt' leads to 'canary', which is an alias too"),
        ("tenants:\n", "tenants: [\n", "is not valid YAML"),
        (
            "text: Q. A.",
            "system: a, text: b",
            "line 22: shared_prefixes.1: write with what prompts",
        ),
        (", text: Q. A.", "", "line 22: shared_prefixes.1: write with what prompts"),
        (
            "system: Be kind.",
            "messages: [{role: tool}]",
            "shared_prefixes.0.messages.0.role: Input",
        ),
        ("name: guide", "name: assistant", "the shared prefix 'assistant' is given twice"),
        ("[small]", "[big]", "the shared prefix assistant: there is no tenant 'big'"),
        ("[small]", "[acme]", "acme shares its cache with the group friends; name that under"),
        (", docs]", ", none]", "no tenant is in the cache group 'none' or may share with it"),
    ],
)
def test_a_mistake_is_told_with_file_line_and_field(
    tmp_path: Path, old: str, new: str, complaint: str
) -> None:
    other = key_hash(b"other")
    text = GOOD.replace(other, HASH) if old == "other" else GOOD.replace(old, new, 1)
    path = write(tmp_path, text)

    with pytest.raises(ConfigError) as raised:
        load_directory(path)

    assert str(path) in raised.value.message
    assert complaint in raised.value.message


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as raised:
        parse_tenants({"f": b"tenants:\n- weight: 1\n  limit: 3\n- name: 7\n"})

    assert raised.value.message.splitlines() == [
        "f, line 2: tenants.0.name: Field required",
        "f, line 3: tenants.0.limit: there is no such field",
        "f, line 4: tenants.1.name: Input should be a string; put it in quotes",
    ]


def test_a_folder_is_read_as_one_file(tmp_path: Path) -> None:
    write(tmp_path, f"secret: {SECRET}\naliases: {{gpt: llama-a}}\n", "common.yaml")
    write(tmp_path, "tenants: [{name: a}]\n", "a.yaml")
    write(tmp_path, "tenants: [{name: b}]\n", "b.yaml")
    write(tmp_path, "not: read\n", ".hidden.yaml")
    directory = load_directory(tmp_path)

    assert [each.name for each in directory.tenants] == ["a", "b"]
    assert list(directory.aliases) == ["gpt"]


def test_a_folder_of_nothing_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no \*.yaml file; write one tenant into each"):
        load_directory(tmp_path)
    with pytest.raises(ConfigError, match="No such file"):
        load_directory(tmp_path / "none.yaml")


def test_the_page_s_example_is_a_good_file_that_shows_every_field(tmp_path: Path) -> None:
    [example] = re.findall(r"```yaml\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    numbers = iter(range(1, 9))
    hashed = re.sub(r"sha256:\w+…", lambda _: f"sha256:{next(numbers):064x}", example)
    directory = load_directory(
        write(tmp_path, re.sub(r"secret: \w+…", f"secret: {SECRET}", hashed))
    )
    assert directory.num_keys(directory.tenants[0]) == 2
    assert directory.aliases["fast"].targets[0].model == "smollm2"
    for form in (TenantForm, LimitsForm, BudgetsForm, PriorityForm, SharedPrefixForm):
        assert form.model_fields.keys() <= set(re.findall(r"\w+", example))


def test_the_page_names_metrics_that_exist() -> None:
    rendered = RouterMetrics().render().decode()
    section = PAGE.read_text("utf-8").partition("## Metrics")[2]
    named = re.findall(r"`([a-z]+_[a-z_]+)`", section)
    assert len(named) == 9
    known = set(re.findall(r"^# TYPE octavo_router_(\w+)", rendered, re.MULTILINE))
    assert {name for name in named if name != "octavo_router_"} <= known
