"""The commands of `stgt`, one file each: a frozen dataclass whose fields are the options and whose `run` does it."""
