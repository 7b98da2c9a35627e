"""The Kubernetes objects that serve a deployment or run a batch. Pure: specs in, manifests out.

quantity           amounts as the API server writes them
pod_template       the deployment's pod template over the operator's
placement          on which nodes pods run
pod                a hardened pod with one container
replica            the pod template of a replica: `octavo serve`
workload           Deployment of replicas
model_cache        claim and download Job
batch_job          Job of a BatchJob
service, disruption_budget, service_account, redis_secret

Equal specs give equal manifests, written as the API server would write them back.
"""
