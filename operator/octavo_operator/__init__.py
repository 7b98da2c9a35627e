"""The Kubernetes operator. Nothing yet: what it will reconcile is in `octavo_protocol`."""
