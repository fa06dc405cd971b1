"""What is declared and said: manifest, settings, wire messages, signing, errors. No network, no processes."""
