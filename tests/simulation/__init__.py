"""The whole engine in virtual time: several processes on one store, and everything that can go wrong with them."""
