"""The Kubernetes operator: observes ModelDeployments, decides, acts. Its README has a map."""
