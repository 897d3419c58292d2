"""What tests of natsblob, and of software built on it, need: real servers and suites to run on them."""
