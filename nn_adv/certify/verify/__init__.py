"""Believe nothing: radii checked in NumPy float64, by code that shares nothing with what computed them."""

from nn_adv.certify.verify.recheck import Certificate, Recheck, Screened, recheck

__all__ = ["Certificate", "Recheck", "Screened", "recheck"]
