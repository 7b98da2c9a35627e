"""`initialize_ray_cluster`: known by name, to say what there is instead."""

from typing import Any

from octavo_protocol.errors import ValidationError


def initialize_ray_cluster(*_: Any, **__: Any) -> None:
    """Raises `ValidationError`: nothing here runs on Ray."""
    raise ValidationError(
        "Octavo does not use Ray: replicas are started by `octavo up` on one machine and by the "
        "operator on Kubernetes"
    )
