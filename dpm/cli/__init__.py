"""The command line: `parser` knows its words, `main` runs it, and a file per group of commands does the work."""
