"""The pytest plugin, under the name by which pytest finds it."""

from shared.pytest_plugin import agentswarm_ledger, agentswarm_script, agentswarm_vcr_config, pytest_terminal_summary

__all__ = ["agentswarm_ledger", "agentswarm_script", "agentswarm_vcr_config", "pytest_terminal_summary"]
