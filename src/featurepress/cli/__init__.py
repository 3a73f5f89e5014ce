"""The command line: it parses, calls the public function of the same name, prints, and sets the exit code."""
