"""One module a verb: parse, call the library, print. Only typer is imported at the top of each."""
