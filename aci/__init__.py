"""What an image and a pod are: manifests, archives, layers, the content store."""
