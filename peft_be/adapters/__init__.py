"""What an adapter's folder is."""

# First of all: as soon as PEFT is imported, `peft_be` gives it this room's `card`, which must not be half imported by then
import peft  # noqa: F401
