"""Kubernetes resources of Octavo as typed models: the one definition that the CRDs, the operator
and `octavo up` share.

base              field names, cross-field rules (CEL and Python from one place), error paths
scalars           names, quantities, parts of Kubernetes' own API, keyed lists
model_source      where models and adapters come from
engine_spec       settings of a replica's engine
pod_spec          image, resources and pod template
model_deployment  ModelDeployment
lora_adapter      LoraAdapter
batch_job         BatchJob
status            conditions and status of them all
parse             objects of the API server to these types
crd_schema        these types to structural schemas
crd               the CustomResourceDefinitions, which `make crds` writes
"""
