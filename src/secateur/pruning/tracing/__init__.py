"""Running a network once with labeled channels, to learn which of them depend on each other."""
