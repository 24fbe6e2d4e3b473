"""What files hold by their bytes, without decoding them."""
