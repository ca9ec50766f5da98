"""Colours, markers and resolution of all figures; the colours are Okabe and Ito's, told apart by everyone."""

from __future__ import annotations

OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
MARKERS = "osD^vPX*"
DPI = 150
