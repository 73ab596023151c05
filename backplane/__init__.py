"""Redis side of the Agent Orchestrator: names, logs, queues, the callback-router."""
