"""What several test folders share: bundles, waiting, monitors, sessions, stand-in runtimes."""
