"""The ground floor of SpecEdge P2P: everything that node and coordinator share."""
