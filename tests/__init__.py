"""The tests of pyconmon and pyconmon_client. Real processes, real runtimes."""
