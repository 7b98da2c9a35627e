"""BatchJobs that are good and not: CEL and the typed model are of one mind, on changes too."""

from typing import Any

import cel
import pytest
from tests.fakes.manifests import Spec, Violation, manifest
from tests.unit.protocol.resources.test_crd import broken_rules, defaulted, nodes, schema_of

from octavo_protocol.resources.batch_job import BatchJob, BatchJobSpec
from octavo_protocol.resources.crd import batch_jobs
from octavo_protocol.resources.parse import parse_batch_job

SCHEMA = schema_of(batch_jobs())["properties"]["spec"]


def spec(source: str = "s3://b/in", out: str = "s3://b/out", **fields: Any) -> Spec:
    return {"input": {"url": source}, "output": {"url": out}, **fields}


GOOD = (
    spec(),
    spec("https://host/in.jsonl?x=1", "pvc://claim.a/out.jsonl", model="org/m"),
    spec("file:///in", "gs://b/o", target={"name": "chat"}),
    spec(completionWindow="720h", priority=-1000, ttlSecondsAfterFinished=0),
    spec(completionWindow="30d", endpoint="/v1/embeddings", secretRef={"name": "s"}),
    spec(completionWindow="9999m", router={"url": "http://r", "apiKeySecretRef": {"name": "k"}}),
    spec() | {"output": {"url": "s3://b/out", "errorsUrl": "pvc://c/errors"}},
)

RULES = (
    Violation(spec("pvc://claim"), "spec.input.url", "write s3://bucket/file"),
    Violation(spec("pvc://Claim/x"), "spec.input.url", "write s3://bucket/file"),
    Violation(spec("file://x/y"), "spec.input.url", "write s3://bucket/file"),
    Violation(spec("s3://b/../x"), "spec.input.url", "no .. in the path"),
    Violation(spec(out="https://h/out"), "spec.output.url", "write s3://bucket/file"),
    Violation(spec(out="pvc://claim/folder/"), "spec.output.url", "write s3://bucket/file"),
    Violation(
        spec() | {"output": {"url": "s3://b/o", "errorsUrl": "http://h/e"}},
        "spec.output.errorsUrl",
        "give another place for errors",
    ),
    Violation(
        spec() | {"output": {"url": "s3://b/o", "errorsUrl": "s3://b/o"}},
        "spec.output.errorsUrl",
        "errors need a file of their own",
    ),
    Violation(spec(model="m", target={"name": "c"}), "spec.target", "either model or target"),
)

STRUCTURE = (
    Violation({"output": {"url": "s3://b/o"}}, "spec.input", ""),
    Violation(spec("a file"), "spec.input.url", ""),
    Violation(spec(completionWindow="31d"), "spec.completionWindow", ""),
    Violation(spec(completionWindow="0h"), "spec.completionWindow", ""),
    Violation(spec(completionWindow="721h"), "spec.completionWindow", ""),
    Violation(spec(endpoint="/v1/models"), "spec.endpoint", ""),
    Violation(spec(priority=1001), "spec.priority", ""),
    Violation(spec(router={"url": "redis://x"}), "spec.router.url", ""),
    Violation(
        spec(router={"apiKeySecretRef": {"key": "k"}}), "spec.router.apiKeySecretRef.name", ""
    ),
)

CHANGES = (
    ({"image": "other:1"}, ""),
    ({"ttlSecondsAfterFinished": 1}, ""),
    ({"input": {"url": "s3://b/other"}}, "input"),
    ({"output": {"url": "s3://b/out", "errorsUrl": "s3://b/e"}}, "input"),
    ({"model": "other"}, "endpoint"),
    ({"model": None, "target": {"name": "m"}}, "endpoint"),
    ({"priority": 1}, "endpoint"),
    ({"completionWindow": "1h"}, "endpoint"),
)


def by_cel(fields: Spec) -> list[tuple[str, str]]:
    transitions = {rule.cel for rule in BatchJobSpec.transition_rules}
    rules = [each for each in SCHEMA["x-kubernetes-validations"] if each["rule"] not in transitions]
    schema = SCHEMA | {"x-kubernetes-validations": rules}
    return list(broken_rules(schema, defaulted(schema, fields), "spec"))


def by_python(fields: Spec) -> list[tuple[str, str]]:
    result = parse_batch_job(manifest(fields, kind="BatchJob"))
    return [] if isinstance(result, BatchJob) else [(each.path, each.message) for each in result]


@pytest.mark.parametrize("fields", GOOD, ids=str)
def test_good_job_is_good_to_both(fields: Spec) -> None:
    assert (by_python(fields), by_cel(fields)) == ([], [])


@pytest.mark.parametrize("violation", RULES, ids=str)
def test_broken_rule_is_the_same_to_both(violation: Violation) -> None:
    [found] = by_python(violation.spec)
    assert found[0] == violation.path
    assert violation.message in found[1]
    assert by_cel(violation.spec) == [found]


@pytest.mark.parametrize("violation", STRUCTURE, ids=str)
def test_wrong_value_is_named_by_its_path(violation: Violation) -> None:
    assert [path for path, _ in by_python(violation.spec)] == [violation.path]


@pytest.mark.parametrize(("fields", "field"), CHANGES, ids=str)
def test_a_change_is_refused_by_both_where_it_concerns_the_batch(fields: Spec, field: str) -> None:
    old, new = spec(model="m"), spec(model="m") | fields
    stored = {"self": defaulted(SCHEMA, new), "oldSelf": defaulted(SCHEMA, old)}
    refused = [each for each in BatchJobSpec.transition_rules if not cel.evaluate(each.cel, stored)]
    assert [each.field for each in refused] == ([field] if field else [])
    before, after = BatchJobSpec.model_validate(old), BatchJobSpec.model_validate(new)
    assert refused == [r for r in BatchJobSpec.transition_rules if not r.is_met(after, before)]


def test_the_tables_break_every_rule() -> None:
    said = {message for violation in RULES for _, message in by_cel(violation.spec)}
    said |= {rule.message for rule in BatchJobSpec.transition_rules}
    rules = {
        rule["message"].partition(": ")[2]
        for _, schema in nodes(SCHEMA)
        for rule in schema.get("x-kubernetes-validations", ())
    }
    assert said == rules
