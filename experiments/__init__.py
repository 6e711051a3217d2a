"""Named recipes and the entry points behind the `stgt` command."""
