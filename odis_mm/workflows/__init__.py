"""Does it help, and which start helps most: one engine for comparisons, made of the commands that users type."""
