"""``python -m featurepress`` is the command ``featurepress``."""

from featurepress.cli.main import main

if __name__ == "__main__":
    main()
