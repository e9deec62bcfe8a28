"""The peer-to-peer overlay behind ports; the only home of libp2p."""
