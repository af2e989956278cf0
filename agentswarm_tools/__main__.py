"""The command line, as `python -m agentswarm_tools` and as `agentswarm-tools`."""

from shared.cli import main

if __name__ == "__main__":
    main()
