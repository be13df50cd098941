"""Traffic on three replicas while the store and the replicas are killed and stopped; `make chaos`."""
