"""The recipes that come with paras2s: YAML files, one folder a family (`pocket/align.yaml`)."""
