"""Who a peer is: Ed25519 key, peer id, signed envelopes."""
