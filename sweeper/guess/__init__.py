"""`sweeper guess`: what a model would do on this machine, computed in seconds, before anything is loaded."""
