"""The command that installs what is missing, as every message has it."""


def install_command(extra: str) -> str:
    """How to install an optional part of this package, from a clone of its repository.

    The constraints hold torch at the version that was run, so that pip does not fetch another.

    Arguments:
        extra: a name of ``[project.optional-dependencies]`` in pyproject.toml.
    """
    return f'pip install -c constraints.txt -e ".[{extra}]"'
