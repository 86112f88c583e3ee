"""Where sources lie on disk, and what identifies them."""
