"""HIC, "Hands in Action" (Tzionas et al., IJCV 2016), with InterWild's annotation file and the MANO fits."""
