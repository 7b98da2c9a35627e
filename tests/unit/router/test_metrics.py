"""Series of deployments are bounded, however many there are and have been."""

from octavo_router.metrics import MAX_LABELLED, RouterMetrics


def labels(metrics: RouterMetrics, name: str) -> set[str]:
    lines = metrics.render().decode().splitlines()
    series = [line for line in lines if line.startswith(f"octavo_router_{name}{{")]
    return {line.split('deployment="')[1].split('"')[0] for line in series}


def test_deployments_past_the_bound_count_together() -> None:
    metrics = RouterMetrics()
    names = [f"n/d{i}" for i in range(MAX_LABELLED + 50)]
    metrics.measure_deployments(dict.fromkeys(names, 2))
    for name in names:
        metrics.answered(name, 200)
    for kind in ("deployment_requests_total", "deployment_replicas"):
        assert labels(metrics, kind) == {*names[:MAX_LABELLED], "other"}
    assert (
        'octavo_router_deployment_replicas{deployment="other"} 100.0' in metrics.render().decode()
    )


def test_the_series_of_a_deployment_end_with_it() -> None:
    metrics = RouterMetrics()
    for number in range(3 * MAX_LABELLED):
        name = f"n/d{number}"
        metrics.answered(name, 200)
        metrics.answered(name, 503)
        metrics.measure_deployments({name: 1})
        assert labels(metrics, "deployment_requests_total") == {name}
        assert labels(metrics, "deployment_replicas") == {name}
