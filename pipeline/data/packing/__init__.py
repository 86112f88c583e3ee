"""Documents of a mixture laid into rows of one length."""
