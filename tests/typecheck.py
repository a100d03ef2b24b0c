"""The checker that the import hook applies: beartype, with ints accepted for floats (PEP 484)."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
