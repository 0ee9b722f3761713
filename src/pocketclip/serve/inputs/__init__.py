"""What requests bring: bodies, forms, texts and images; what is fetched or passed on for them."""
