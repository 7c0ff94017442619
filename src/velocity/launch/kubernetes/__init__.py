"""A Kubernetes cluster, as an Indexed Job, by its kubectl."""
