"""InterHand2.6M, and rendered sets in its layout."""
