"""The command line, as `python -m agentswarm_tools` and as `agentswarm-tools`."""


def main() -> None:
    """Run a command; Ctrl-C ends it without a traceback, even while its modules are still being imported."""
    try:
        from shared.cli import main as run

        run()
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
