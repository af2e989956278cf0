"""The command line, as `python -m agentswarm_tools` and as `agentswarm-tools`."""

import gc

# A command makes some 100,000 objects, nearly all of which live until it ends: looking for garbage among them takes a
# tenth of its time, and once more as much when Python ends.
_OBJECTS = 100_000


def main() -> None:
    """Run a command; Ctrl-C ends it without a traceback, even while its modules are still being imported."""
    gc.set_threshold(_OBJECTS)
    try:
        from shared.cli import main as run

        run()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    finally:
        gc.freeze()


if __name__ == "__main__":
    main()
