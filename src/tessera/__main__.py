"""`python -m tessera`: the command, where a launcher wants a module."""

from tessera.cli.main import main

if __name__ == "__main__":
    main()
