"""Performance: measured (`benchmark`), and planned by the compiler (`planning`)."""
