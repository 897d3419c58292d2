"""Where blobs lie: the protocols (`base`) and the backends that implement them."""
