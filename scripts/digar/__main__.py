"""``python -m digar``: the command without an installation."""

from digar.cli.app import main

if __name__ == "__main__":
    main()
