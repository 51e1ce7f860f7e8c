"""How many replicas a load needs: `fastswitch plan`."""
