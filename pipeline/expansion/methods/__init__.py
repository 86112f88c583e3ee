"""The methods that grow a model, one file each."""
