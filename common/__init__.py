"""The leaf every room stands on: errors, system calls, file habits. Imports nothing of the rest."""
