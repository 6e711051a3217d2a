"""The commands of `stgt`, one file each: a function whose parameters are the options."""
