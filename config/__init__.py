"""What is declared and said: manifest, settings, wire messages, signing, errors. Pure: no network, no processes."""
