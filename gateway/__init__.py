"""Client side of the Agent Orchestrator: the pod that holds the sockets."""
