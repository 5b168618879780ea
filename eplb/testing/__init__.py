"""Checks for the tests of other packages: what eplb asks of every strategy."""

from eplb.testing.strategy_contract import ContractError, check_strategy

__all__ = ["ContractError", "check_strategy"]
