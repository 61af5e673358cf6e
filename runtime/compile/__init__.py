"""What compiled runtimes plan alike, without knowing a device."""
