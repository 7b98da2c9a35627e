"""The kopf operator: reconciles ModelDeployment resources into replicas."""
